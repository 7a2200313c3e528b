"""The model card: what a person finds in a model folder's README.md."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gnet_jax.config import choose
from gnet_jax.config.paths import as_text
from gnet_jax.model.roles import roles_by_path
from gnet_jax.model_folder.variables import unflatten

_EXAMPLE = """\
```python
from pathlib import Path

import jax

import gnet_jax
from gnet_jax.data import preprocess
from gnet_jax.data.decode import central_crop, decode

model, variables, preprocessing = gnet_jax.load({quoted})
photo = decode(Path("photo.jpg").read_bytes())
images = preprocess(central_crop(photo, preprocessing)[None], preprocessing=preprocessing)
logits = jax.jit(model.apply)(variables, images).logits
print(logits[0].argmax())  # its name is in config.json, under id2label
```
"""


def model_card(config: Mapping[str, Any], flat: Mapping[str, np.ndarray], name: str) -> str:
    """The card's text.

    Args:
        config: what config.json holds.
        flat: the variables by name, which are counted.
        name: the folder's name.
    """
    arch, p, source = config["architecture"], config["preprocessing"], config["source"]
    params = sum(math.prod(v.shape) for k, v in flat.items() if k.startswith("params/"))
    heads = ", ".join(arch["aux_after"]) or "none"
    front = ["---", "library_name: gnet_jax", "pipeline_tag: image-classification"]
    front += ["tags:", "- image-classification", "- googlenet", "- inception-v1", "- jax", "- flax"]
    if "license" in source:
        front += ["license: other", f"license_name: {source['license']}"]
    ways = {
        "warp": f"the whole image warped to {p['resize_to']}x{p['resize_to']}",
        "shorter_side": f"the shorter side resized to {p['resize_to']}",
    }
    resized = choose("resize", p["resize"], ways)
    facts = {
        "parameters": f"{params:,}, all that are stored",
        "classes": f"{config['num_classes']:,}",
        "normalisation": normalisation(arch["norm"], flat),
        "kernels in the blocks": ", ".join(block_kernels(flat)),
        "auxiliary heads": f"{heads} (used in training only)",
        "computed in": config["dtype"],
        "input": f"{resized}, central {p['image_size']}x{p['image_size']} crop, {p['channels']}, "
        f"(x - {tuple(round(v, 4) for v in p['mean'])}) / {tuple(round(v, 4) for v in p['std'])}, "
        "pixels 0 to 255",
    }
    origin = {key.replace("_", " "): value for key, value in source.items()}
    lines = [
        *front,
        "---",
        f"# {as_text(name)}",
        "",
        "GoogLeNet (Inception v1, [arXiv 1409.4842](https://arxiv.org/abs/1409.4842)), "
        "to be used with `gnet_jax`.",
        "",
        *_table(facts),
        "## Use",
        "",
        _EXAMPLE.format(quoted=json.dumps(name, ensure_ascii=False)),
        "## Where the weights came from",
        "",
        *_table(origin),
        "The accuracy above is that of the run's own evaluation, on its validation split."
        if "validation_top1" in source
        else "No accuracy is stated here: none was measured when this folder was written.",
        "",
    ]
    return "\n".join(lines)


def normalisation(norm: str, flat: Mapping[str, np.ndarray]) -> str:
    """How a network normalises, in words, by its variables.

    LRN and other norms without variables are known by the architecture's `norm` alone. A norm with
    parameters is batch norm if it has running statistics; any other has its own name.
    """
    modules = roles_by_path(unflatten(flat)["params"])
    layers = [path for path, role in modules.items() if role == "kernel"]
    found = {}
    for path in sorted({path[:-1] for path, role in modules.items() if role == "norm"}):
        stored = {f"batch_stats/{'/'.join(path)}/{name}" for name in ("mean", "var")}
        # Where it is in the block that holds its layer: "norm/group", the same in all of them.
        block = next(n for n in range(len(path), -1, -1) if _in(path[:n], layers) or n == 0)
        own = f"`{'/'.join(path[block:])}`"
        found["batch norm" if stored <= flat.keys() else own] = None
    words = {"lrn": "LRN", "batch_norm": "batch norm"}
    stated = {} if found and norm != "lrn" else {words.get(norm, f"`{norm}`"): None}
    return ", ".join(stated | found)


def _in(module: tuple[str, ...], paths: Iterable[tuple[str, ...]]) -> bool:
    return any(path[: len(module)] == module for path in paths)


def block_kernels(flat: Mapping[str, np.ndarray]) -> list[str]:
    """The sizes of the convolutions in the Inception blocks: "1x1", "3x3", ..."""
    kernels = [
        value.shape[:2]
        for name, value in flat.items()
        if name.startswith("params/inception_") and name.endswith("/kernel") and value.ndim == 4
    ]
    return [f"{height}x{width}" for height, width in sorted(set(kernels))]


def _table(rows: Mapping[str, str]) -> list[str]:
    lines = (f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return ["| | |", "|---|---|", *lines, ""]


def _cell(text: str) -> str:
    return as_text(text).replace("|", "\\|")
