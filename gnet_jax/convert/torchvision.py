"""Converts the variable names and the preprocessing of torchvision's GoogLeNet."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.convert import mapping
from gnet_jax.convert.published import PUBLISHED
from gnet_jax.model.architecture import VARIANTS, Architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder.folder import TrainedModel, WeightsError, unflatten

_STEM = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
_BRANCHES = {
    "b1": "branch1",
    "reduce3": "branch2.0",
    "b3": "branch2.1",
    "reduce5": "branch3.0",
    "b5": "branch3.1",  # 3x3, although torchvision's comment says 5x5 (pytorch/vision#906)
    "pool_proj": "branch4.1",
}
_HEADS = {"aux_4a": "aux1", "aux_4d": "aux2"}
_CONV = {
    "params/{}/conv/kernel": "{}.conv.weight",
    "params/{}/norm/scale": "{}.bn.weight",
    "params/{}/norm/bias": "{}.bn.bias",
    "batch_stats/{}/norm/mean": "{}.bn.running_mean",
    "batch_stats/{}/norm/var": "{}.bn.running_var",
}
_LINEAR = {"params/{}/kernel": "{}.weight", "params/{}/bias": "{}.bias"}
_MARKERS = "conv1.conv.weight", "inception3a.branch1.conv.weight"
_STEPS = ".num_batches_tracked"  # a counter of each batch norm, not used here


def preprocessing(transform_input: bool) -> Preprocessing:
    """Returns torchvision's preprocessing; mean and std include the effect of `transform_input`.

    `transform_input` is an option of torchvision's network. It maps images that were normalised
    with ImageNet's mean and std to (x / 255 - 0.5) / 0.5. The published weights require it.
    """
    if transform_input:
        return Preprocessing(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
    return Preprocessing(
        mean=(255 * 0.485, 255 * 0.456, 255 * 0.406), std=(255 * 0.229, 255 * 0.224, 255 * 0.225)
    )


def load(
    tensors: Mapping[str, np.ndarray], src: Path, sha256: str, transform_input: bool | None
) -> tuple[TrainedModel, list[str]]:
    """Returns the network in a state dict, and notes on what was assumed, skipped or renamed.

    The model has no class names. `preprocessing` explains `transform_input`; None means true for
    the published file, which requires it, and false for others. Raises WeightsError.
    """
    network, notes = find_network(tensors, str(src))
    arch, flat = from_torchvision(network, str(src))
    published = sha256.startswith(PUBLISHED["torchvision"].sha256)
    if published and transform_input is False:
        raise WeightsError(f"{src} is torchvision's published file, which needs transform_input")
    mapped = published if transform_input is None else transform_input
    pixels = preprocessing(mapped)
    source = {"transform_input": "yes, as part of mean and std" if mapped else "no"}
    if published:
        untrained = "not trained, according to torchvision's documentation"
        source |= PUBLISHED["torchvision"].facts | {"auxiliary_heads": untrained}
    else:
        notes.append(mapping.assumed_preprocessing("torchvision", pixels))
        if transform_input is None:
            notes.append(
                "assumed training without torchvision's transform_input; if the network was "
                "fine-tuned from torchvision's published weights, use gnet convert "
                "--transform-input yes"
            )
    return TrainedModel(GoogLeNet(arch), unflatten(flat), pixels, (), source), notes


def find_network(
    tensors: Mapping[str, np.ndarray], where: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the GoogLeNet's state dict, with torchvision's names, and notes on all changes.

    `tensors` are all tensors of the file, named as in `read_torch`. A prefix of the network's
    names is removed. A classifier of one linear layer is renamed to fc. An auxiliary head is
    skipped if its number of classes is not the classifier's. Raises WeightsError if there is no
    GoogLeNet, more than one, or one with other layers before or after it.
    """
    tensors = {name.replace("_orig_mod.", ""): v for name, v in tensors.items()}  # torch.compile's
    prefix = mapping.find_prefix(tensors, _MARKERS, "a torchvision GoogLeNet", where)
    entry = prefix[: prefix.rfind("/") + 1]  # the dict that holds the network
    network, beside, elsewhere = {}, {}, []
    for name, value in tensors.items():
        inside = name.removeprefix(entry)
        if not name.startswith(entry) or "/" in inside:
            elsewhere.append(name)
        elif name.startswith(prefix):
            network[name.removeprefix(prefix)] = value
        else:
            beside[inside] = value
    notes = [] if "fc.weight" in network else _rename_classifier(network, beside, where)
    if "fc.weight" in network:
        if network["fc.weight"].shape[2:] == (1, 1):
            network["fc.weight"] = network["fc.weight"][:, :, 0, 0]
        # A tensor outside the network may belong to a layer before or after it.
        shape = network["fc.weight"].shape
        classes = shape[0]
        odd = [*_linear_layers(beside, classes), *_linear_layers(beside, shape[-1])]
        if classes != 3:  # with 3 classes, 3 numbers may be the class weights of a loss
            odd += [name for name, value in beside.items() if value.size == 3]
        if odd:
            raise WeightsError(f"{where} also has {odd[0]}; save only the GoogLeNet's state dict")
        heads = {f"{head}.": f"{head}.fc2.weight" for head in _HEADS.values()}
        counts = {head: len(network[name]) for head, name in heads.items() if name in network}
        notes += mapping.drop_heads(network, counts, classes)
    if skipped := [*beside, *elsewhere]:
        more = f" and {len(skipped) - 1:,} other tensors" if len(skipped) > 1 else ""
        notes.append(f"skipped {skipped[0]}{more}, which are not part of the network")
    return network, notes


def _rename_classifier(
    network: dict[str, np.ndarray], beside: dict[str, np.ndarray], where: str
) -> list[str]:
    """Rename the linear layer whose input is the pooled features to fc; returns notes.

    The rest of its module moves from `beside` to `network`; `from_torchvision` then rejects it.
    """
    ends = [f"inception5b.{_BRANCHES[b]}.conv.weight" for b in ("b1", "b3", "b5", "pool_proj")]
    features = sum(len(network[name]) for name in ends if name in network)
    usual = set(_names(_HEADS).values())
    odd = {n: v for n, v in network.items() if n not in usual and not n.startswith("aux")}
    found = _linear_layers(odd | beside, features)
    if len(found) > 1:
        raise WeightsError(f"{where} has two possible classifiers: {found[0]} and {found[1]}")
    for layer in found:
        module = layer.partition(".")[0] + "."
        for name in [name for name in beside if name.startswith(module)]:
            network[name] = beside.pop(name)
        for part in ("weight", "bias"):
            if f"{layer}.{part}" in network:
                network[f"fc.{part}"] = network.pop(f"{layer}.{part}")
    return [f"used {layer} as the classifier, assuming no activation follows" for layer in found]


def _linear_layers(tensors: Mapping[str, np.ndarray], inputs: int) -> list[str]:
    """Returns the names of linear layers and 1x1 convolutions with this number of inputs."""
    return [
        name.removesuffix(".weight")
        for name, value in tensors.items()
        if name.endswith(".weight")
        and (value.ndim == 2 or (value.ndim == 4 and value.shape[2:] == (1, 1)))
        and value.shape[1] == inputs
    ]


def _names(heads: Collection[str]) -> dict[str, str]:
    """Returns torchvision's name for every variable of a network with the auxiliary `heads`."""
    convs, linear = dict(_STEM), {}
    for block in VARIANTS["torchvision"].widths:
        convs |= {f"inception_{block}/{b}": f"inception{block}.{t}" for b, t in _BRANCHES.items()}
    for head in heads:
        convs[f"{head}/conv"] = f"{_HEADS[head]}.conv"
        linear |= {f"{head}/fc": f"{_HEADS[head]}.fc1", f"{head}/classifier": f"{_HEADS[head]}.fc2"}
    linear["classifier"] = "fc"
    return mapping.name_variables(convs, _CONV) | mapping.name_variables(linear, _LINEAR)


def from_torchvision(
    tensors: Mapping[str, np.ndarray], where: str
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Returns the architecture and the flat variables of a state dict; see `map_variables`."""
    used = {name: value for name, value in tensors.items() if not name.endswith(_STEPS)}
    heads = [ours for ours, theirs in _HEADS.items() if any(n.startswith(theirs) for n in used)]
    return mapping.map_variables(used, _names(heads), where, VARIANTS["torchvision"])


def to_torchvision(arch: Architecture, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns flat variables as a state dict for torchvision's network.

    Raises WeightsError unless the architecture is the variant "torchvision" with both auxiliary
    heads or none.
    """
    own = VARIANTS["torchvision"]
    free = {"num_classes", "dropout", "aux_dropout"}
    if not arch.aux_after:
        free |= {"aux_after", "aux_widths", "aux_pool"}
    fields = [field.name for field in dataclasses.fields(arch) if field.name not in free]
    odd = [name for name in fields if getattr(arch, name) != getattr(own, name)]
    names = {} if odd else _names([f"aux_{block}" for block in arch.aux_after])
    if odd := odd or sorted(names.keys() ^ flat.keys()):
        raise WeightsError(f"the network is not torchvision's: {odd[0]} differs; use .safetensors")
    tensors = {}
    for ours, theirs in names.items():
        value = flat[ours]
        if ours.endswith("/fc/kernel"):
            channels = flat[ours.removesuffix("fc/kernel") + "conv/conv/kernel"].shape[-1]
            value = mapping.rows_to_channels_first(value, channels)
        if ours.endswith("/kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        tensors[theirs] = np.ascontiguousarray(value)
        if theirs.endswith(".running_var"):
            tensors[theirs.replace(".running_var", _STEPS)] = np.zeros((), np.int64)
    return tensors
