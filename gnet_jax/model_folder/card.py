"""The model card: the README.md of a model folder."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gnet_jax.config import choose
from gnet_jax.config.paths import as_text

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
    """Returns the text of the model card.

    `config` is the content of config.json, `flat` has the variables by path, such as
    "params/conv1/conv/kernel", and `name` is the name of the folder.
    """
    arch, source = config["architecture"], config["source"]
    params = sum(math.prod(v.shape) for k, v in flat.items() if k.startswith("params/"))
    heads = ", ".join(arch["aux_after"]) or "none"
    norms = {"lrn": "LRN", "batch_norm": "batch norm", "none": "none"}
    facts = {
        "parameters": f"{params:,}, including auxiliary heads",
        "classes": f"{config['num_classes']:,}",
        "normalisation": norms.get(arch["norm"], f"`{arch['norm']}`"),
        "auxiliary heads": f"{heads} (used in training only)",
        "computed in": config["dtype"],
        "input": describe_preprocessing(config["preprocessing"]),
    }
    licensed = source.get("license")
    return _CARD.format(
        license=f"license: other\nlicense_name: {licensed}\n" if licensed else "",
        name=as_text(name),
        facts=_table(facts),
        quoted=json.dumps(name, ensure_ascii=False),
        origin=_table({key.replace("_", " "): value for key, value in source.items()}),
        accuracy="The accuracy is from the run's own evaluation, on its validation split."
        if "validation_top1" in source
        else "The accuracy was not measured when this folder was written.",
    )


def describe_preprocessing(p: Mapping[str, Any]) -> str:
    """Returns a one-line description of `p`, a dict with the fields of `Preprocessing`."""
    size, side = p["image_size"], p["resize_to"]
    ways = {"warp": f"warped to {side}x{side}", "shorter_side": f"shorter side {side}"}
    mean, std = (tuple(round(value, 4) for value in p[key]) for key in ("mean", "std"))
    way = choose("resize", p["resize"], ways)
    return f"{way}, central {size}x{size} crop, {p['channels']}, (pixels 0 to 255 - {mean}) / {std}"


def _table(rows: Mapping[str, str]) -> str:
    cells = ((name, as_text(value).replace("|", "\\|")) for name, value in rows.items())
    return "".join(["| | |\n|---|---|\n", *(f"| {name} | {value} |\n" for name, value in cells)])
