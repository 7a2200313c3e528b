"""Quantises a network to 8-bit integers in ONNX, and measures the accuracy before and after.

Shapes: N images, S side of the network's input, C channels.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gnet_jax.config import UserError
from gnet_jax.config.recipes import needs
from gnet_jax.convert.export import export
from gnet_jax.data.augment import preprocess
from gnet_jax.data.batches import BadRecords, eval_batches
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import Source, SubsetSource, open_source
from gnet_jax.data.sources.classes import empty_classes
from gnet_jax.inference.evaluate import pair_classes
from gnet_jax.model_folder import TrainedModel

CALIBRATION = 200  # number of training images that set the ranges of the activations


class Files(NamedTuple):
    """The float32 and the int8 file: their sizes in bytes, and their accuracy."""

    images: int
    top1: tuple[float, float]
    sizes: tuple[int, int]


def export_int8(trained: TrainedModel, out: Path, data: str) -> Files:
    """Write an ONNX file with 8-bit weights and activations, and compare it with float32.

    Weights have one scale per output channel. The ranges of activations are measured on evenly
    spaced training images of the data set `data`; the accuracy is that of onnxruntime on its
    validation images. Raises UserError if `out` does not end in .onnx or cannot be written, if the
    data lacks a split or has a class that the model lacks, or if a package is missing.
    """
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
    classes, _ = pair_classes(val.class_names, trained.class_names, empty_classes(val))

    class Reader(quantization.CalibrationDataReader):
        batches = _batches(trained, SubsetSource(train, CALIBRATION))

        def get_next(self) -> Any:  # None at the end
            x_NCSS, _ = next(self.batches, (None, None))
            return None if x_NCSS is None else {"input": x_NCSS}

    try:
        with tempfile.TemporaryDirectory(prefix=".int8-", dir=out.absolute().parent) as folder:
            files = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
            export(trained, files[0])
            model = onnx.load(files[0])
            # Its shapes are known and its batch norm is folded, so it needs no preparation.
            add_pre_process_metadata(model)
            kind = quantization.QuantType.QInt8
            options = {"per_channel": True, "activation_type": kind, "weight_type": kind}
            quantization.quantize_static(model, files[1], Reader(), **options)
            providers = ["CPUExecutionProvider"]
            sessions = [onnxruntime.InferenceSession(f, providers=providers) for f in files]
            images, correct = 0, np.zeros(2, int)
            with progress_line("evaluating", "images", len(val)) as advance:
                for x_NCSS, label_N in _batches(trained, val):
                    for kind, session in enumerate(sessions):
                        logits_NK: Any = session.run(["logits"], {"input": x_NCSS})[0]
                        guesses_N = logits_NK.argmax(axis=1)
                        correct[kind] += (guesses_N == np.array(classes)[label_N]).sum()
                    images += len(x_NCSS)
                    advance(len(x_NCSS))
            sizes = [file.stat().st_size for file in files]
            files[1].replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    top1 = correct / images
    return Files(images, (float(top1[0]), float(top1[1])), (sizes[0], sizes[1]))


def _batches(trained: TrainedModel, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the network's input (N, C, S, S) and the labels (N,); skips up to 2 % bad images."""
    p, bad = trained.preprocessing, BadRecords(source, 0.02)
    for batch in eval_batches(source, batch_size=8, preprocessing=p, threads=2, bad=bad):
        good = batch["mask"]
        x_NSSC = np.asarray(preprocess(batch["image"][good], preprocessing=p))  # pyright: ignore[reportArgumentType]
        yield np.ascontiguousarray(x_NSSC.transpose(0, 3, 1, 2)), batch["label"][good]
