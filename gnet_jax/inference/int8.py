"""Quantises a network to 8-bit integers in ONNX, and measures the accuracy before and after.

Shapes: N images, S side of the network's input, C channels.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gnet_jax.config import UserError
from gnet_jax.config.paths import typed_path
from gnet_jax.config.recipes import needs
from gnet_jax.convert.export import export
from gnet_jax.data.augment import preprocess
from gnet_jax.data.batches import BadRecords, eval_batches
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import Source, SubsetSource, open_source, spaced
from gnet_jax.data.sources.classes import empty_classes
from gnet_jax.inference.evaluate import pair_classes
from gnet_jax.model_folder import TrainedModel

CALIBRATION = 200  # number of training images that set the ranges of the activations


class Measured(NamedTuple):
    """The accuracy of a file on `images` labelled images, and its size."""

    kind: str
    top1: float
    images: int
    size: int  # bytes


def export_int8(trained: TrainedModel, out: Path, data: str) -> list[Measured]:
    """Write an ONNX file with 8-bit weights and activations, and compare it with float32.

    Returns the measures of the float32 file and of the int8 file, by onnxruntime on the validation
    images of the data set `data`. Weights have one scale per output channel. The ranges of
    activations are measured on evenly spaced training images. Raises UserError if `out` does not
    end in .onnx or cannot be written, if the data lacks a split or has a class that the model
    lacks, or if a package is missing.
    """
    out = typed_path(out)
    if out.suffix != ".onnx":
        raise UserError(f"--int8 writes only .onnx files, not {out.suffix!r}")
    try:
        import onnx
        import onnxruntime
        from onnxruntime import quantization
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata
    except ImportError as error:
        raise UserError(needs("--int8", error, "export")) from error
    train, val = open_source(data, "train"), open_source(data, "val")
    calibration = spaced(len(train), min(CALIBRATION, len(train)))
    classes, note = pair_classes(val.class_names, trained.class_names, empty_classes(val))
    if note is not None:
        print(note, file=sys.stderr, flush=True)

    class Reader(quantization.CalibrationDataReader):
        batches = _batches(trained, SubsetSource(train, calibration, "train"))

        def get_next(self) -> Any:  # None at the end
            x_NCSS, _ = next(self.batches, (None, None))
            return None if x_NCSS is None else {"input": x_NCSS}

    try:
        with tempfile.TemporaryDirectory(prefix=".int8-", dir=out.absolute().parent) as folder:
            exact, small = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
            export(trained, exact)
            model = onnx.load(exact)
            # Its shapes are known and its batch norm is folded, so it needs no preparation.
            add_pre_process_metadata(model)
            kind = quantization.QuantType.QInt8
            options = {"per_channel": True, "activation_type": kind, "weight_type": kind}
            quantization.quantize_static(model, small, Reader(), **options)
            providers = ["CPUExecutionProvider"]
            files = exact, small
            sessions = [onnxruntime.InferenceSession(each, providers=providers) for each in files]
            correct_N2: list[np.ndarray] = []
            with progress_line("evaluating", "images", len(val)) as advance:
                for x_NCSS, label_N in _batches(trained, val):
                    outputs: Any = [each.run(["logits"], {"input": x_NCSS})[0] for each in sessions]
                    guesses_N2 = np.stack([logits_NK.argmax(axis=1) for logits_NK in outputs], 1)
                    correct_N2.append(guesses_N2 == np.array(classes)[label_N, None])
                    advance(len(x_NCSS))
            top1, images = np.concatenate(correct_N2).mean(axis=0), sum(map(len, correct_N2))
            measured = [
                Measured(file.stem, float(value), images, file.stat().st_size)
                for file, value in zip(files, top1, strict=True)
            ]
            small.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    return measured


def _batches(trained: TrainedModel, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the network's input (N, C, S, S) and the labels (N,); skips up to 2 % bad images."""
    p, bad = trained.preprocessing, BadRecords(source, 0.02)
    for batch in eval_batches(source, batch_size=8, preprocessing=p, threads=2, bad=bad):
        good = batch["mask"]
        x_NSSC = np.asarray(preprocess(batch["image"][good], preprocessing=p))  # pyright: ignore[reportArgumentType]
        yield np.ascontiguousarray(x_NSSC.transpose(0, 3, 1, 2)), batch["label"][good]
