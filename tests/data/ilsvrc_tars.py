"""ImageNet's tars in small: four classes, and a few of the images that are stored oddly."""

import io
import tarfile

import numpy as np
from PIL import Image

WNIDS = ("n02105855", "n01440764", "n15075141", "n01739381")  # as they come in the tar
LABELS = {"n01440764": 0, "n01739381": 59, "n02105855": 230, "n15075141": 999}
# What tensorflow-datasets says of the first six images of the validation set.
VALIDATION = ("n01751748", "n09193705", "n02105855", "n04263257", "n03125729", "n01735189")
VALIDATION_LABELS = (65, 970, 230, 809, 516, 57)
PNG = "n02105855_2933.JPEG"
CMYK = "n01739381_1309.JPEG"
GREY = "n01440764_7.JPEG"


def picture(seed, size=(40, 32)):
    """Smooth colours, which JPEG changes little."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG"):
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def train_images(a_class=6):
    """The bytes of every training image by its name."""
    images = {}
    for number, wnid in enumerate(WNIDS):
        for i in range(a_class):
            images[f"{wnid}_{i}.JPEG"] = encoded(picture(100 * number + i))
    images[PNG] = encoded(picture(901), "PNG")
    images[CMYK] = encoded(picture(902).convert("CMYK"))
    images[GREY] = encoded(picture(903).convert("L"))
    return images


def validation_images():
    return {f"ILSVRC2012_val_{i + 1:08d}.JPEG": encoded(picture(950 + i)) for i in range(6)}


def tar_of(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_tars(folder, train=None):
    """Write both tars into `folder`."""
    train = train_images() if train is None else train
    classes = {}
    for wnid in WNIDS:
        of_class = {name: data for name, data in train.items() if name.startswith(wnid)}
        classes[f"{wnid}.tar"] = tar_of(of_class)
    folder.mkdir(exist_ok=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    # The validation tar is in no order.
    names = sorted(validation_images(), reverse=True)
    images = {name: validation_images()[name] for name in names}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(images))
