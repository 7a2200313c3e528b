"""The model card: the README.md of a model folder."""

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gnet_jax.config import UserError, choose
from gnet_jax.config.bucket import Place
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
_MEASURED = "The accuracy is from the run's own evaluation, on its validation split."
_NOT_MEASURED = "The accuracy was not measured when this folder was written."
_IN_HEADER = "The results of `gnet evaluate` are in the header of this file."
_HEADER = re.compile(r"---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
_HUB_LICENSES = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "mit")  # others need a name beside them
_HUB_DATASETS = {"imagenet2012": "imagenet-1k"}  # names of the Hub that are not those of TFDS


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
    named = f"license: other\nlicense_name: {licensed}\n" if licensed else ""
    return _CARD.format(
        license=f"license: {licensed}\n" if licensed in _HUB_LICENSES else named,
        name=as_text(name),
        facts=_table(facts),
        quoted=json.dumps(name, ensure_ascii=False),
        origin=_table({key.replace("_", " "): value for key, value in source.items()}),
        accuracy=_MEASURED if "validation_top1" in source else _NOT_MEASURED,
    )


def read_card(file: Place) -> str:
    """Returns the text of the model card in `file`. Raises UserError if it is not UTF-8."""
    try:
        return file.read_text("utf-8-sig")  # some editors add a byte-order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8; save it as UTF-8, for example with iconv -f LATIN1 -t UTF-8"
        ) from error


def add_results(
    card: str, name: str, data: str, split: str, accuracies: Mapping[str, float]
) -> str:
    """Returns the card with results of an evaluation in its header, as the Hub's `model-index`.

    `data` is a spec such as "tfds:imagenet2012" or "folder:PHOTOS"; of a path, only the last part
    is written. `accuracies` are fractions by name, which replace those of the same name, data and
    split. Raises UserError if the header is not that of a model card.
    """
    import yaml

    found = _HEADER.match(card)
    shown = os.path.basename(os.path.abspath(data.partition(":")[2] or data))  # a path can be "."
    dataset = {"type": _HUB_DATASETS.get(shown, shown), "name": shown, "split": split}
    try:
        header = (yaml.safe_load(found[1]) if found else None) or {}
        (index,) = header.setdefault("model-index", [{"name": name, "results": []}])
        results = {str(each["dataset"]): each for each in index["results"]}
        result = results.setdefault(
            str(dataset),
            {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": []},
        )
        result["metrics"] = [each for each in result["metrics"] if each["name"] not in accuracies]
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, KeyError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"the model card has no valid header: {problem}") from error
    result["metrics"] += [
        {"type": "accuracy", "name": each, "value": value} for each, value in accuracies.items()
    ]
    index["results"] = list(results.values())
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    body = card[found.end() :] if found else card
    return f"---\n{text}---\n{body.replace(_NOT_MEASURED, _IN_HEADER)}"


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
