"""The model card: the README.md of a model folder."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gnet_jax.config import choose
from gnet_jax.config.paths import as_text
from gnet_jax.model.layers import roles_by_path
from gnet_jax.model_folder.variables import unflatten

_CARD = """\
---
library_name: gnet_jax
pipeline_tag: image-classification
tags:
- image-classification
- googlenet
- inception-v1
- jax
- flax
{license}---
# {name}

GoogLeNet (Inception v1, [arXiv 1409.4842](https://arxiv.org/abs/1409.4842)), for `gnet_jax`.

{facts}
## Use

```python
import gnet_jax

model = gnet_jax.load({quoted})
for name, probability in model.predict("photo.jpg")[0]:
    print(f"{{probability:.1%}}  {{name}}")
```

## Origin of the weights

{origin}
{accuracy}
"""


def model_card(config: Mapping[str, Any], flat: Mapping[str, np.ndarray], name: str) -> str:
    """Returns the text of the card.

    Args:
        config: the content of config.json.
        flat: the variables by flat name.
        name: the folder's name.
    """
    arch, p, source = config["architecture"], config["preprocessing"], config["source"]
    params = sum(math.prod(v.shape) for k, v in flat.items() if k.startswith("params/"))
    heads = ", ".join(arch["aux_after"]) or "none"
    resized = choose(
        "resize",
        p["resize"],
        {
            "warp": f"the whole image warped to {p['resize_to']}x{p['resize_to']}",
            "shorter_side": f"the shorter side resized to {p['resize_to']}",
        },
    )
    mean, std = (tuple(round(value, 4) for value in p[key]) for key in ("mean", "std"))
    facts = {
        "parameters": f"{params:,}, auxiliary heads included",
        "classes": f"{config['num_classes']:,}",
        "normalisation": normalisation(arch["norm"], flat),
        "kernels in the blocks": ", ".join(block_kernels(flat)),
        "auxiliary heads": f"{heads} (used in training only)",
        "computed in": config["dtype"],
        "input": f"{resized}, central {p['image_size']}x{p['image_size']} crop, {p['channels']}, "
        f"(x - {mean}) / {std}, pixels 0 to 255",
    }
    licensed = "license" in source
    return _CARD.format(
        license=f"license: other\nlicense_name: {source['license']}\n" if licensed else "",
        name=as_text(name),
        facts=_table(facts),
        quoted=json.dumps(name, ensure_ascii=False),
        origin=_table({key.replace("_", " "): value for key, value in source.items()}),
        accuracy="The accuracy is that of the run's own evaluation, on its validation split."
        if "validation_top1" in source
        else "The accuracy was not measured when this folder was written.",
    )


def normalisation(norm: str, flat: Mapping[str, np.ndarray]) -> str:
    """Returns the kinds of normalisation in a network, in words.

    Only the architecture's `norm` tells LRN and other norms without variables. A norm with
    parameters is batch norm if it has running statistics; any other goes by its module's name.
    """
    modules = roles_by_path(unflatten(flat)["params"])
    layers = [path for path, role in modules.items() if role == "kernel"]
    found = {}
    for path in sorted({path[:-1] for path, role in modules.items() if role == "norm"}):
        stored = {f"batch_stats/{'/'.join(path)}/{name}" for name in ("mean", "var")}
        # Its path below the block that contains its layer: "norm/group", the same in every block.
        block = next(n for n in range(len(path), -1, -1) if _in(path[:n], layers) or n == 0)
        own = f"`{'/'.join(path[block:])}`"
        found["batch norm" if stored <= flat.keys() else own] = None
    words = {"lrn": "LRN", "batch_norm": "batch norm"}
    stated = {} if found and norm != "lrn" else {words.get(norm, f"`{norm}`"): None}
    return ", ".join(stated | found)


def _in(module: tuple[str, ...], paths: Iterable[tuple[str, ...]]) -> bool:
    return any(path[: len(module)] == module for path in paths)


def block_kernels(flat: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the kernel sizes in the Inception blocks: "1x1", "3x3", ..."""
    kernels = [
        value.shape[:2]
        for name, value in flat.items()
        if name.startswith("params/inception_") and name.endswith("/kernel") and value.ndim == 4
    ]
    return [f"{height}x{width}" for height, width in sorted(set(kernels))]


def _table(rows: Mapping[str, str]) -> str:
    cells = ((name, as_text(value).replace("|", "\\|")) for name, value in rows.items())
    return "".join(["| | |\n|---|---|\n", *(f"| {name} | {value} |\n" for name, value in cells)])
