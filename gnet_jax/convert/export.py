"""Export a network to the formats of other programs, and verify each file by reading it back.

The exported networks take normalised images of S x S pixels (see `gnet_jax.data.preprocess`) and
compute logits in float32.

    .onnx          the main head: maps "input" (N, 3, S, S) to "logits" (N, classes)
    .stablehlo     the main head: maps (N, S, S, 3) to (N, classes). The file contains a program for
                   cpu, cuda and tpu. `jax.export.deserialize(bytes).call` runs it with only jax.
    .tflite        the main head: maps "input" (1, S, S, 3) to "logits" (1, classes), for LiteRT
    .safetensors   all variables by name; the metadata contains the config of the model folder
    .pth           a state dict for torchvision.models.googlenet; only for the variant "torchvision"
"""

import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from gnet_jax.config import UserError, json_text
from gnet_jax.config.paths import typed_path
from gnet_jax.config.recipes import needs
from gnet_jax.convert.torch_file import read_torch, write_torch
from gnet_jax.convert.torchvision import from_torchvision, to_torchvision
from gnet_jax.model.googlenet import GoogLeNet, strip_aux
from gnet_jax.model_folder import folder as folders
from gnet_jax.model_folder.folder import TrainedModel, flatten, unflatten

TOLERANCE = 1e-4  # largest allowed difference in a logit, as a fraction of the largest logit
PLATFORMS = ("cpu", "cuda", "tpu")

Run = Callable[[np.ndarray], np.ndarray]  # normalised images (B, S, S, 3) to logits (B, K)


def export(folder: TrainedModel, out: str | Path) -> float:
    """Write the network to `out` in the format of its suffix, and verify the file.

    Returns the largest difference from the network's own logits on random images, as a fraction of
    the largest logit. For .safetensors and .pth, it is 0: the variables must be identical.
    Raises WeightsError if the format does not support the network, and UserError for an unknown
    suffix, a missing package, a path that cannot be written, or a difference above `TOLERANCE`. If
    there is an error, an existing file `out` is not changed.
    """
    out = typed_path(out)
    if out.suffix not in _WRITERS:
        raise UserError(f"cannot export to {out.name}; the suffixes are {', '.join(_WRITERS)}")
    if out.name == folders.WEIGHTS_FILE and folders.is_model_folder(out.parent):
        raise UserError(f"{out} contains the weights of a model folder; choose another file")
    # Keep the suffix, because some readers need it.
    unfinished = out.with_name(f".{out.stem}-{os.getpid()}{out.suffix}")
    folder = dataclasses.replace(
        folder,
        model=folder.model.clone(dtype=jnp.float32),
        variables=unflatten(flatten(folder.variables)),  # float32
    )
    try:
        with jax.default_device(_exact_device()):
            difference = _largest_difference(folder, _WRITERS[out.suffix](folder, unfinished))
        if not difference <= TOLERANCE:
            reason = f"its logits differ from the network's by {difference:.1e} of the largest"
            raise UserError(f"did not write {out}: {reason}")
        unfinished.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return difference


def _exact_device() -> Any:
    """Returns a CPU, as GPUs and TPUs round float32 products to fewer bits; None if disabled."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes CPUs
        return None


def _largest_difference(folder: TrainedModel, written: Run | TrainedModel) -> float:
    """Returns the largest error in the logits of `written`, as a fraction of the largest logit.

    If `written` is a function, it is called with one and three images. A model read back is not
    run: the result is 0 if it has the network and the variables of `folder`, otherwise infinity.
    """
    if isinstance(written, TrainedModel):
        own, read = flatten(folder.variables), flatten(written.variables)
        same = own.keys() == read.keys() and all(np.array_equal(own[n], read[n]) for n in own)
        return 0.0 if same and written.model == folder.model else float("inf")
    p = folder.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (3, p.image_size, p.image_size, 3))
    x_BHWC = ((pixels - np.array(p.mean)) / np.array(p.std)).astype(np.float32)
    logits = jax.jit(partial(_logits, folder.model))
    expected_BK = np.asarray(logits(_without_heads(folder), x_BHWC))
    found = [written(x_BHWC[:1]), written(x_BHWC)]
    scale = float(np.abs(expected_BK).max()) or 1.0
    # np.max, unlike max, returns NaN if any value is NaN.
    return float(np.max([np.abs(f_BK - expected_BK[: len(f_BK)]).max() for f_BK in found])) / scale


def _logits(model: GoogLeNet, variables: Any, x_BHWC: jax.Array) -> jax.Array:
    outputs: Any = model.apply(variables, x_BHWC)
    return outputs.logits


def _without_heads(folder: TrainedModel) -> dict[str, Any]:
    return {group: strip_aux(tree) for group, tree in folder.variables.items()}


def _write_onnx(folder: TrainedModel, out: Path) -> Run:
    try:
        import onnx
        import onnxruntime

        from gnet_jax.convert.onnx_graph import onnx_model
    except ImportError as error:
        raise UserError(needs("export to .onnx", error, "export")) from error
    size = folder.preprocessing.image_size
    metadata = {"config": json_text(folders.config_of(folder))}
    onnx.save(onnx_model(folder.model.arch, flatten(folder.variables), size, metadata), out)
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])

    def run(x_BHWC: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["logits"], {"input": x_BHWC.transpose(0, 3, 1, 2)})[0])

    return run


def _write_stablehlo(folder: TrainedModel, out: Path) -> Run:
    try:
        import flatbuffers  # noqa: F401  (jax.export writes with it)
    except ImportError as error:
        raise UserError(needs("export to .stablehlo", error, "export")) from error
    program = _program(folder, "batch", PLATFORMS)
    out.write_bytes(program.serialize(vjp_order=0))
    read = jax_export.deserialize(bytearray(out.read_bytes()))
    return lambda x_BHWC: np.asarray(read.call(x_BHWC))


def _write_tflite(folder: TrainedModel, out: Path) -> Run:
    try:
        from ai_edge_litert.interpreter import Interpreter  # pyright: ignore
        from litert_converter.mlir import ir, passmanager  # pyright: ignore
        from litert_converter.mlir._mlir_libs import converter_api_ext as litert  # pyright: ignore
        from litert_converter.mlir.dialects import stablehlo  # pyright: ignore
    except ImportError as error:
        raise UserError(needs("export to .tflite", error, "litert")) from error
    program = _program(folder, "1", ("cpu",))  # phones classify one image at a time
    context = ir.Context()
    litert.prepare_mlir_context(context)
    with context:
        module = stablehlo.deserialize_portable_artifact(context, program.mlir_module_serialized)
        litert.set_signature(module.operation, "serving_default", ["input"], ["logits"])
        manager, config = passmanager.PassManager(), litert.ConvertToTFLConfig()
        litert.run_convert_to_tfl_passes(module, manager, config)
        out.write_bytes(litert.export_flatbuffer_to_bytes(module.operation))
    run = Interpreter(str(out)).get_signature_runner()
    return lambda x_BHWC: np.concatenate([run(input=x_HWC[None])["logits"] for x_HWC in x_BHWC])


def _program(folder: TrainedModel, batch: str, platforms: tuple[str, ...]) -> jax_export.Exported:
    """Returns the main head as StableHLO, with its weights; `batch` is a number or a symbol."""
    variables = jax.tree.map(jnp.asarray, _without_heads(folder))
    size = folder.preprocessing.image_size
    shape = jax_export.symbolic_shape(f"{batch}, {size}, {size}, 3")
    logits = jax.jit(partial(_logits, folder.model, variables))
    program = jax_export.export(logits, platforms=platforms)
    return program(jax.ShapeDtypeStruct(shape, jnp.float32))


def _write_safetensors(folder: TrainedModel, out: Path) -> TrainedModel:
    config = json_text(folders.config_of(folder))
    folders.write_tensors(out, flatten(folder.variables), {"format": "gnet_jax", "config": config})
    tensors, metadata = folders.read_tensors(out)
    return folders.folder_of(json.loads(metadata["config"]), tensors, out)


def _write_pth(folder: TrainedModel, out: Path) -> TrainedModel:
    own = folder.model.arch
    write_torch(out, to_torchvision(own, flatten(folder.variables)))
    arch, flat = from_torchvision(read_torch(out), str(out))
    # The file does not contain the dropout rates.
    arch = dataclasses.replace(arch, dropout=own.dropout, aux_dropout=own.aux_dropout)
    return dataclasses.replace(folder, model=GoogLeNet(arch), variables=unflatten(flat))


_WRITERS: dict[str, Callable[[TrainedModel, Path], Run | TrainedModel]] = {
    ".onnx": _write_onnx,
    ".stablehlo": _write_stablehlo,
    ".tflite": _write_tflite,
    ".safetensors": _write_safetensors,
    ".pth": _write_pth,
}
