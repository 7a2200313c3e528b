"""The model card: what a person finds in a model folder's README.md."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gnet_jax.data.plain_path import printable

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
    resized = (
        f"the whole image warped to {p['resize_to']}x{p['resize_to']}"
        if p["resize"] == "warp"
        else f"the shorter side resized to {p['resize_to']}"
    )
    facts = {
        "parameters": f"{params:,}, all that are stored",
        "classes": f"{config['num_classes']:,}",
        "normalisation": "batch norm" if arch["norm"] == "batch_norm" else "LRN",
        "branch with the large kernel": f"{arch['branch5_kernel']}x{arch['branch5_kernel']}",
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
        f"# {printable(name)}",
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


def _table(rows: Mapping[str, str]) -> list[str]:
    lines = (f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return ["| | |", "|---|---|", *lines, ""]


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
