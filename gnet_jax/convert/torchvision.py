"""torchvision's GoogLeNet: its names and layouts for this project's variables, and back.

Layouts: kernels are HWIO here and OIHW there, linear layers (inputs, outputs) here and the
transpose there, and feature maps are flattened H,W,C here and C,H,W there.
"""

from collections.abc import Collection, Mapping

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.model.architecture import VARIANTS, Architecture
from gnet_jax.model_folder.variables import (
    WeightsError,
    rows_to_channels_first,
    rows_to_channels_last,
    with_shapes_of,
)

_BRANCHES = {
    "b1": "branch1",
    "reduce3": "branch2.0",
    "b3": "branch2.1",
    "reduce5": "branch3.0",
    "b5": "branch3.1",  # a 3x3, whatever its comment says (pytorch/vision#906)
    "pool_proj": "branch4.1",
}
_HEADS = {"aux_4a": "aux1", "aux_4d": "aux2"}
# Of a convolution's variables: where they are here, and there.
_CONV = {
    ("params", "conv/kernel"): "conv.weight",
    ("params", "norm/scale"): "bn.weight",
    ("params", "norm/bias"): "bn.bias",
    ("batch_stats", "norm/mean"): "bn.running_mean",
    ("batch_stats", "norm/var"): "bn.running_var",
}
_LINEAR = {("params", "kernel"): "weight", ("params", "bias"): "bias"}

_FIRST, _SECOND = "conv1.conv.weight", "inception3a.branch1.conv.weight"  # tell a GoogLeNet

PUBLISHED_SHA256 = "1378be20"
"""How the sha256 of the published file begins; torchvision puts it into the file's name."""


def preprocessing(transform_input: bool) -> Preprocessing:
    """What torchvision does: shorter side 256, central 224, RGB.

    Args:
        transform_input: whether the network was made with torchvision's option of that name, as
            it is for the published weights (their origin is TensorFlow, whose inputs lie in -1 to
            1). The option maps an image that was normalised by ImageNet's mean and std to
            (x / 255 - 0.5) / 0.5; here that map is part of mean and std.
    """
    mean = (0.5, 0.5, 0.5) if transform_input else (0.485, 0.456, 0.406)
    std = (0.5, 0.5, 0.5) if transform_input else (0.229, 0.224, 0.225)
    red, green, blue = (255 * value for value in mean)
    scale = tuple(255 * value for value in std)
    return Preprocessing(
        image_size=224,
        resize="shorter_side",
        resize_to=256,
        channels="RGB",
        mean=(red, green, blue),
        std=(scale[0], scale[1], scale[2]),
    )


def _names(heads: Collection[str]) -> dict[str, str]:
    """The name of every variable in torchvision, by ours, with some or no auxiliary heads."""
    modules = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
    for block in VARIANTS["torchvision"].widths:
        modules |= {f"inception_{block}/{b}": f"inception{block}.{t}" for b, t in _BRANCHES.items()}
    linear = {}
    for head in heads:
        name = _HEADS[head]
        modules[f"{head}/conv"] = f"{name}.conv"
        linear |= {f"{head}/fc": f"{name}.fc1", f"{head}/classifier": f"{name}.fc2"}
    linear["classifier"] = "fc"
    names = {}
    for kind, parts in ((modules, _CONV), (linear, _LINEAR)):
        for ours, theirs in kind.items():
            for (group, leaf), part in parts.items():
                names[f"{group}/{ours}/{leaf}"] = f"{theirs}.{part}"
    return names


def _channels_of(name: str, flat: Mapping[str, np.ndarray]) -> int | None:
    """Channels of the feature map that the linear layer's kernel flattens, if it is one."""
    if not name.endswith("/fc/kernel"):
        return None
    return flat[name.removesuffix("fc/kernel") + "conv/conv/kernel"].shape[-1]


def find_network(
    tensors: Mapping[str, np.ndarray], where: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The state dict of a GoogLeNet among the tensors of a file, under torchvision's own names.

    Training scripts wrap the network in modules and dicts, save other things beside it, and replace
    its classifier. Whatever stands before the names of a GoogLeNet is dropped ("module.",
    "state_dict/model."), a classifier of one linear layer is called fc, and auxiliary heads with
    another number of classes than fc are left out.

    Args:
        tensors: by name, with a slash between the keys of nested dicts, as `read_torch` has them.
        where: the file, for messages.

    Returns:
        The tensors, for `from_torchvision`, and a sentence for everything that was left out or
        taken for the classifier.

    Raises:
        WeightsError: if there is no GoogLeNet, more than one, or one in front of other layers.
    """
    tensors = {name.replace("_orig_mod.", ""): v for name, v in tensors.items()}  # torch.compile's
    prefix = _prefix(tensors, where)
    entry = prefix[: prefix.rfind("/") + 1]  # of the checkpoint; a module's name may go on after it
    outer, module = _inside(tensors, entry), prefix.removeprefix(entry)
    network = {n.removeprefix(module): v for n, v in outer.items() if n.startswith(module)}
    around = {n: v for n, v in outer.items() if not n.startswith(module)}
    notes = _name_classifier(network, around, where)
    _refuse_more_layers(network, around, where)
    notes += _drop_other_heads(network)
    if left := [*around, *(n for n in tensors if n.removeprefix(entry) not in outer)]:
        more = f" and {len(left) - 1:,} other tensors" if len(left) > 1 else ""
        notes.append(f"left out {left[0]}{more}, because they are not part of the network")
    return network, notes


def _prefix(tensors: Mapping[str, np.ndarray], where: str) -> str:
    """What stands before the names of the only GoogLeNet among the tensors."""
    prefixes = [n.removesuffix(_FIRST) for n in tensors if n.endswith(_FIRST)]
    prefixes = [p for p in prefixes if p + _SECOND in tensors and (not p or p[-1] in "./")]
    if not prefixes:
        first = ", ".join(list(tensors)[:3]) or "nothing"
        raise WeightsError(f"{where} is not a torchvision GoogLeNet: it holds {first}, ...")
    if len(prefixes) > 1:
        raise WeightsError(
            f"{where} holds {len(prefixes)} networks, {' and '.join(p + _FIRST for p in prefixes)};"
            " save the state dict of one of them as a file of its own"
        )
    return prefixes[0]


def _inside(tensors: Mapping[str, np.ndarray], entry: str) -> dict[str, np.ndarray]:
    """The tensors of one dict of the file, without those of dicts inside of it."""
    found = {n.removeprefix(entry): v for n, v in tensors.items() if n.startswith(entry)}
    return {name: value for name, value in found.items() if "/" not in name}


def _name_classifier(
    network: dict[str, np.ndarray], around: dict[str, np.ndarray], where: str
) -> list[str]:
    """Give the only layer that reads the pooled features the name fc, with a note of its name.

    Layers in one module with it, which would be of another network, stay in `network`, where
    `from_torchvision` finds and names them.
    """
    for head in _HEADS.values():
        layers = _layers(_parts(network, f"{head}.fc2."))
        if len(layers) == 1:
            _rename(network, layers[0], f"{head}.fc2")
    notes = []
    if "fc.weight" not in network:
        usual = set(_names(_HEADS).values())
        own = {n: v for n, v in network.items() if n not in usual and not n.startswith("aux")}
        found = _layers(own | around, inputs=_channels(network))
        if len(found) > 1:
            raise WeightsError(
                f"{where} is not a GoogLeNet with one classifier: {found[0]} and {found[1]} both "
                "read its features"
            )
        for layer in found:
            root = layer.partition(".")[0]
            for name in _parts(around, f"{root}."):
                network[name] = around.pop(name)
            _rename(network, layer, "fc")
            notes.append(
                f"took {layer} for the classifier; a file does not tell whether an activation "
                "follows it"
            )
    weight = network.get("fc.weight")
    if weight is not None and weight.ndim == 4 and weight.shape[2:] == (1, 1):
        network["fc.weight"] = weight[:, :, 0, 0]
    if weight is not None and "fc.bias" not in network:
        network["fc.bias"] = np.zeros(len(weight), np.float32)
        notes.append("took 0 for the bias of the classifier, which has none")
    return notes


def _refuse_more_layers(
    network: Mapping[str, np.ndarray], around: Mapping[str, np.ndarray], where: str
) -> None:
    """Refuse what can change the network's images or read what it puts out."""
    classifier = network.get("fc.weight")
    if classifier is None:
        return
    classes, features = classifier.shape[0], classifier.shape[-1]
    odd = [*_layers(around, classes), *_layers(around, features)]
    if classes != 3:  # else they may be weights of classes
        odd += [name for name, value in around.items() if len(value.reshape(-1)) == 3]
    if odd:
        raise WeightsError(
            f"{where} has {odd[0]} beside its GoogLeNet, which may be a layer before or after it; "
            "if it is not, save the state dict of the GoogLeNet alone"
        )


def _drop_other_heads(network: dict[str, np.ndarray]) -> list[str]:
    """Leave out the auxiliary heads whose classes are not those of fc; returns notes."""
    notes = []
    for head in _HEADS.values():
        own, main = network.get(f"{head}.fc2.weight"), network.get("fc.weight")
        if own is not None and main is not None and len(own) != len(main):
            for name in _parts(network, f"{head}."):
                del network[name]
            notes.append(
                f"left out the auxiliary head {head}, because it has {len(own)} classes and the "
                f"network {len(main)}"
            )
    return notes


def _channels(network: Mapping[str, np.ndarray]) -> int:
    """Channels of the last block's output, as far as its tensors are there."""
    ends = ("b1", "b3", "b5", "pool_proj")
    kernels = (network.get(f"inception5b.{_BRANCHES[end]}.conv.weight") for end in ends)
    return sum(len(kernel) for kernel in kernels if kernel is not None)


def _layers(tensors: Mapping[str, np.ndarray], inputs: int | None = None) -> list[str]:
    """Names of the linear layers and 1x1 convolutions, all or those with so many inputs."""
    return [
        name.removesuffix(".weight")
        for name, value in tensors.items()
        if name.endswith(".weight")
        and (value.ndim == 2 or (value.ndim == 4 and value.shape[2:] == (1, 1)))
        and inputs in (None, value.shape[1])
    ]


def _parts(tensors: Mapping[str, np.ndarray], start: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in tensors.items() if name.startswith(start)}


def _rename(tensors: dict[str, np.ndarray], old: str, new: str) -> None:
    for part in ("weight", "bias"):
        if f"{old}.{part}" in tensors:
            tensors[f"{new}.{part}"] = tensors.pop(f"{old}.{part}")


def from_torchvision(
    tensors: Mapping[str, np.ndarray], where: str
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """The architecture and the flat variables of a state dict, with or without auxiliary heads.

    Raises:
        WeightsError: naming the first tensor that is missing, unknown or of an unfit rank.
    """
    names = _names([ours for ours, theirs in _HEADS.items() if _parts(tensors, f"{theirs}.")])
    known = set(names.values())
    unknown = [n for n in tensors if n not in known and not n.endswith(".num_batches_tracked")]
    flat: dict[str, np.ndarray] = {}
    for ours, theirs in names.items():
        if theirs not in tensors:
            rest = f", and has {unknown[0]}, which torchvision's has not" if unknown else ""
            raise WeightsError(f"{where} is not a whole GoogLeNet: it has no {theirs}{rest}")
        value = tensors[theirs]
        if value.dtype.kind != "f":
            raise WeightsError(f"{where}: {theirs} is of type {value.dtype}, not floating point")
        rank = 4 if theirs.endswith("conv.weight") else 2 if ours.endswith("/kernel") else 1
        if value.ndim != rank:
            raise WeightsError(f"{where}: {theirs} is {value.shape}; it must have rank {rank}")
        if rank > 1:
            value = value.transpose(2, 3, 1, 0) if rank == 4 else value.T
        channels = _channels_of(ours, flat)
        if channels is not None:
            if value.shape[0] != 16 * channels:
                raise WeightsError(
                    f"{where}: {theirs} has {value.shape[0]} inputs, not 4x4 of {channels} channels"
                )
            value = rows_to_channels_last(value, channels)
        flat[ours] = np.ascontiguousarray(value)
    if unknown:
        raise WeightsError(
            f"{where} has {unknown[0]}, which torchvision's GoogLeNet has not: another network"
        )
    return with_shapes_of(flat, VARIANTS["torchvision"]), flat


def to_torchvision(arch: Architecture, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict as torchvision has it, from flat variables.

    Raises:
        WeightsError: if torchvision has no such net: only its own variant with any number of
            classes, and both auxiliary heads or none.
    """
    own = VARIANTS["torchvision"]
    for field in (
        "norm",
        "naive",
        "branch5_kernel",
        "pool4_window",
        "stem",
        "stem_padding",
        "stem_widths",
        "head",
    ):
        there, here = getattr(own, field), getattr(arch, field)
        if there != here:
            raise WeightsError(
                f"torchvision's GoogLeNet cannot hold this net: {field} is {there} there, and "
                f"{here} here"
            )
    if arch.widths != own.widths:
        raise WeightsError("torchvision's GoogLeNet cannot hold this net: its widths are Table 1's")
    aux_fields = (arch.aux_after, arch.aux_widths, arch.aux_pool)
    if arch.aux_after and aux_fields != (own.aux_after, own.aux_widths, own.aux_pool):
        raise WeightsError(
            f"torchvision's GoogLeNet has auxiliary heads after 4a and 4d or none, not {aux_fields}"
        )
    tensors, names = {}, _names([f"aux_{block}" for block in arch.aux_after])
    odd = sorted(names.keys() ^ flat.keys())
    if odd:
        where = "lacks" if odd[0] in names else "has, and torchvision's lacks,"
        raise WeightsError(f"torchvision's GoogLeNet cannot hold this net, which {where} {odd[0]}")
    for ours, theirs in names.items():
        value = flat[ours]
        channels = _channels_of(ours, flat)
        if channels is not None:
            value = rows_to_channels_first(value, channels)
        if ours.endswith("/kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        tensors[theirs] = np.ascontiguousarray(value)
        if theirs.endswith(".running_var"):
            tracked = theirs.replace("running_var", "num_batches_tracked")
            tensors[tracked] = np.zeros((), np.int64)
    return tensors
