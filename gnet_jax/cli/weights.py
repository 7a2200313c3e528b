"""The commands for files of weights: download, push, convert, export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gnet_jax.cli.models import Model
from gnet_jax.cli.output import check_not_input, several
from gnet_jax.config import UserError, suggestion
from gnet_jax.config.bucket import IN_BUCKET, locate
from gnet_jax.config.paths import typed_path


def download(
    names: Annotated[Positional[tuple[str, ...]], several("NAME ...")] = (),
    show_list: Annotated[bool, arg(name="list")] = False,
) -> None:
    """Download published weights, verify them, and print their paths.

    Other commands download weights when they are named, so this is for working offline later.

    Args:
        names: names of published weights.
        show_list: print the available weights with their accuracy, licence and source.
    """
    from gnet_jax.convert.published import PUBLISHED, fetch

    if bool(names) == show_list:
        raise UserError("give either the names of published weights, or --list")
    for name, each in PUBLISHED.items() if show_list else ():
        print(f"{name}: {each.origin}, {each.megabytes} MB, licence: {each.license}")
        print(f"  accuracy on ImageNet: {each.accuracy}\n  {each.urls[0]}")
    for name in names:
        if name not in PUBLISHED:
            near = suggestion(name, PUBLISHED)
            raise UserError(f"{name} is not a name of published weights; {near}")
    for name in names:
        print(fetch(name))


def push(
    model: Model, repo: Annotated[Positional[str], arg(metavar="OWNER/NAME")], private: bool = False
) -> None:
    """Upload a model and its model card to the Hugging Face Hub. First log in: `hf auth login`.

    Args:
        repo: the repository, which is created if it does not exist; its model is replaced.
        private: create a private repository; an existing public one is refused.
    """
    from gnet_jax.inference.predict import load
    from gnet_jax.model_folder import hub
    from gnet_jax.model_folder.card import read_card
    from gnet_jax.model_folder.folder import CARD_FILE, is_model_folder

    hub.check(repo)  # before the model is read
    folder = locate(model)
    own = is_model_folder(folder) and (folder / CARD_FILE).is_file()
    card = read_card(folder / CARD_FILE) if own else None
    url = hub.upload(load(model), repo, card, private)
    print(f"uploaded {model} to {url}. Try:\n  gnet predict {hub.PREFIX}{repo} PHOTO.jpg")


def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC"), IN_BUCKET],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    class_names: Path | None = None,
    transform_input: Literal["yes", "no"] | None = None,
) -> None:
    """Convert published weights, or a training workdir, to a model folder.

    SRC is the name of published weights (`gnet download --list`), a .caffemodel file, a .pth or
    .safetensors file of torchvision's GoogLeNet, a checkpoint of TF-slim's Inception v1, Google's
    inception5h, Caffe's network as an .onnx file, a zip or tar archive with one file of weights, or
    a workdir. In an archive, the file must be NAME.caffemodel, .pth, .safetensors, .ckpt, .onnx or
    graph.pb. The format is detected from the content, and no code in the file is executed. If the
    file lacks settings, defaults are used and printed.

    Args:
        src: the name, file or workdir to read.
        dst: the model folder to write.
        class_names: a JSON file, or a text file with one class name per line, in output order.
        transform_input: torchvision's setting; yes for weights fine-tuned from its published file.
    """
    from gnet_jax.convert.read import convert as convert_file
    from gnet_jax.data.class_names import read_class_names
    from gnet_jax.model_folder.folder import is_model_folder

    names = None if class_names is None else read_class_names(class_names)
    mapped = None if transform_input is None else transform_input == "yes"
    done = "replaced the model in" if is_model_folder(typed_path(dst)) else "wrote"
    folder = convert_file(src, dst, class_names=names, transform_input=mapped)
    arch, classes = folder.model.arch, folder.class_names
    heads = ", ".join(arch.aux_after) or "none"
    print(f"{folder.source['format']}: {arch.num_classes} classes, auxiliary heads: {heads}")
    print(f"class names: {classes[0]!r} to {classes[-1]!r}")
    print(f"{done} {dst}. Try:\n  gnet predict {shlex.quote(str(dst))} PHOTO.jpg")


def export(
    model: Model, out: Annotated[Positional[Path], arg(metavar="OUT")], int8: str | None = None
) -> None:
    """Export a model, and check that the file has the model's logits, or its exact variables.

    Args:
        out: OUT.onnx, OUT.stablehlo, OUT.tflite, OUT.safetensors, or OUT.pth (torchvision's variant
            only).
        int8: for .onnx, quantise to 8-bit integers with training images of this data set, and print
            the accuracy on its validation images. One of folder:PATH, npz:PATH, tfds:NAME, digits.
    """
    from gnet_jax.convert.export import export as export_model
    from gnet_jax.inference.predict import load

    if model.is_file():
        check_not_input(out, [model])
    if int8 is None:
        difference = export_model(load(model), out)
        print(f"wrote {out}; its logits equal the model's within {difference:.1e} of the largest")
        return
    from gnet_jax.inference.int8 import export_int8

    for kind, top1, images, size in export_int8(load(model), out, int8):
        print(f"{kind:<8} top-1 {top1:.2%} of {images:,} images, {size:,} bytes")
    print(f"wrote {out}")
