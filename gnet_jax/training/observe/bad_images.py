"""Damaged images in a run: named at first sight, counted, and listed in the workdir."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from gnet_jax.data import BadRecord, BadRecords, Source
from gnet_jax.data.bad_images import SHOWN
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.program import Run
from gnet_jax.training.workdir import MetricsFile


class Damage:
    """The damaged images of a run, `train` and `val`, in `bad_records.jsonl` of the workdir.

    A run that goes on knows those that it had met by the step it starts from. Every host counts and
    lists what it reads; hosts but the first write `bad_records-HOST.jsonl`.
    """

    def __init__(self, run: Run, workdir: Path, reporter: Reporter, start_step: int) -> None:
        host = jax.process_index()
        self._file = MetricsFile(workdir / f"bad_records{f'-{host}' if host else ''}.jsonl")
        if self._file.path.is_file():
            self._file.forget_after(start_step)
        self._reporter = reporter
        self.step = start_step
        self.train = self._records("train", run.train, run, "replaced by the next good one")
        self.val = self._records("val", run.val, run, "left out")

    def _records(self, split: str, source: Source, run: Run, fate: str) -> BadRecords:
        fields = [field.name for field in dataclasses.fields(BadRecord)]
        known = [
            BadRecord(**{name: line[name] for name in fields})
            for line in self._file.read()
            if line["split"] == split
        ]
        return BadRecords(
            source,
            run.config.data.bad_limit,
            told=self._teller(split, fate, len(known)),
            known=known,
            listed_in=self._file.path,
        )

    def _teller(self, split: str, fate: str, count: int) -> Callable[[BadRecord], None]:
        def tell(record: BadRecord) -> None:
            nonlocal count
            count += 1
            line = {"split": split, **dataclasses.asdict(record)}
            self._reporter.keep(self._file, self.step, line)
            if count <= SHOWN:
                self._reporter.say(f"damaged, {fate}: {record}")
            elif count == SHOWN + 1:
                self._reporter.say(f"further damaged images are listed in {self._file.path}")

        return tell

    def say_left_out(self, images: int) -> None:
        """Tell how many validation images the last evaluation was without, if any."""
        if images:
            what = "damaged image" if images == 1 else "damaged images"
            self._reporter.say(f"{images:,} {what} left out, listed in {self._file.path}")
