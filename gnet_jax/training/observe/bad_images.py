"""Damaged images in a run: printed when first seen, counted, and listed in the workdir."""

import dataclasses
from pathlib import Path

import jax

from gnet_jax.data.bad_images import SHOWN, BadRecord, BadRecords
from gnet_jax.data.sources import Source
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.program import Run
from gnet_jax.training.workdir import MetricsFile


class BadImages:
    """The damaged images of a run, `train` and `val`, in `bad_records.jsonl` of the workdir.

    A resumed run keeps those listed up to the step from which it resumes. Every host counts and
    lists what it reads; the file of host 1 is `bad_records-1.jsonl`.
    """

    def __init__(self, run: Run, workdir: Path, reporter: Reporter, start_step: int) -> None:
        host = jax.process_index()
        self._file = MetricsFile(workdir / f"bad_records{f'-{host}' if host else ''}.jsonl")
        self._file.forget_after(start_step)
        self._reporter, self._limit = reporter, run.config.data.bad_limit
        self.step = start_step  # the one whose images are being read
        self.train = self._records("train", run.train, "replaced by the next good one")
        self.val = self._records("val", run.val, "left out")

    def _records(self, split: str, source: Source, what: str) -> BadRecords:
        fields = [field.name for field in dataclasses.fields(BadRecord)]
        known = [
            BadRecord(**{name: line[name] for name in fields})
            for line in self._file.read()
            if line["split"] == split
        ]
        count = len(known)

        def report(record: BadRecord) -> None:
            nonlocal count
            count += 1
            line = {"split": split, **dataclasses.asdict(record)}
            self._reporter.append(self._file, self.step, line)
            if count <= SHOWN:
                self._reporter.say(f"damaged, {what}: {record}")
            elif count == SHOWN + 1:
                self._reporter.say(f"further damaged images are listed in {self._file.path}")

        return BadRecords(source, self._limit, told=report, known=known, listed_in=self._file.path)

    def report_left_out(self, images: int) -> None:
        """Print how many validation images the last evaluation left out, if any."""
        if images:
            what = "damaged image" if images == 1 else "damaged images"
            self._reporter.say(f"{images:,} {what} left out, listed in {self._file.path}")
