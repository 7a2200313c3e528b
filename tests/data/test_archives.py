"""CIFAR and Imagenette from archives in their authors' layout, downloaded from a local server."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.data.decode import decode
from gnet_jax.data.prepare.tfds import prepare
from gnet_jax.data.sources import open_source
from gnet_jax.data.sources.tfds import TfdsSource
from gnet_jax.errors import UserError
from tests.data.ilsvrc_tars import encoded, picture, tar_of

CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]
CLASSES += ["dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder, and the address of a server of its files."""
    folder = tmp_path_factory.mktemp("site")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def publish(site, monkeypatch, tmp_path):
    """Puts an archive on the server, where tensorflow-datasets is told that it is."""
    import tensorflow_datasets as tfds

    folder, address = site
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def publish(name, files):
        data = gzip.compress(tar_of(files))
        (folder / name).write_bytes(data)
        facts = tfds.core.download.checksums.UrlInfo(
            size=len(data), checksum=hashlib.sha256(data).hexdigest(), filename=name
        )
        monkeypatch.setattr(tfds.core.DatasetBuilder, "url_infos", {f"{address}/{name}": facts})
        return data

    return publish


def pixels(number):
    """Four distinguishable images, (N, 32, 32, 3) uint8, whose red, green and blue differ."""
    return np.random.default_rng(number).integers(0, 256, (4, 32, 32, 3), np.uint8)


def rows(images, *labels):
    """CIFAR's binary rows: the labels, then a plane for each colour."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.array(labels, np.uint8).T, planes], axis=1).tobytes()


def cifar10():
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    files = {name: rows(pixels(i), [i, 3, 9, 0]) for i, name in enumerate(names)}
    files |= {"batches.meta.txt": "\n".join([*CLASSES, ""]).encode(), "readme.html": b"no"}
    return {f"cifar-10-batches-bin/{name}": data for name, data in files.items()}


def by_pixels(source):
    """The label of each image, by its pixels."""
    every = (source[i] for i in range(len(source)))
    return {np.asarray(decode(image)).tobytes(): label for image, label in every}


def test_cifar10_has_the_pixels_and_labels_of_its_archive(publish, tmp_path, monkeypatch, capsys):
    publish("cifar-10-binary.tar.gz", cifar10())
    command = ["prepare", "cifar10", "--data-dir", str(tmp_path)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "20 train, 4 test images" in told
    assert f"TFDS_DATA_DIR={tmp_path} gnet train cifar10 --data.source tfds:cifar10\n" in told
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    train, test = (open_source("tfds:cifar10", split) for split in ("train", "test"))
    assert train.class_names == test.class_names == tuple(CLASSES)
    expected = {pixels(i)[j].tobytes(): [i, 3, 9, 0][j] for i in range(5) for j in range(4)}
    assert by_pixels(train) == expected
    assert by_pixels(test) == {pixels(5)[j].tobytes(): [5, 3, 9, 0][j] for j in range(4)}
    with Image.open(io.BytesIO(train[0].image)) as opened:
        assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (32, 32))


def test_the_order_and_ids_of_cifar10_are_those_of_tensorflow_datasets(publish, tmp_path):
    """tfds is given the same keys; it needs no TensorFlow for encoded images."""
    import tensorflow_datasets as tfds

    publish("cifar-10-binary.tar.gz", cifar10())
    prepare("cifar10", data_dir=tmp_path)

    class SameIndices(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"id": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(4)}

        def _generate_examples(self, count=0):
            for index in range(count):
                yield index, {"id": str(index)}

    theirs = SameIndices(data_dir=str(tmp_path / "theirs"), file_format="array_record")
    theirs.download_and_prepare()
    for split in ("train", "test"):
        expected = [f"{split}_{int(e['id']):05d}" for e in theirs.as_data_source(split)]
        ours = tfds.data_source("cifar10", split=split, data_dir=str(tmp_path))
        assert [each["id"].decode() for each in ours] == expected


def test_cifar100_is_labelled_with_its_hundred_fine_classes(publish, tmp_path):
    fine, coarse = (
        [f"{kind}_{i}" for i in range(n)] for kind, n in (("fine", 100), ("coarse", 20))
    )
    files = {
        "train.bin": rows(pixels(0), [19, 0, 1, 2], [99, 0, 50, 98]),
        "test.bin": rows(pixels(1), [4, 5, 6, 7], [1, 2, 3, 4]),
        "fine_label_names.txt": "\n".join(fine).encode(),
        "coarse_label_names.txt": "\n".join(coarse).encode(),
    }
    files = {f"cifar-100-binary/{name}": data for name, data in files.items()}
    publish("cifar-100-binary.tar.gz", files)
    assert prepare("cifar100", data_dir=tmp_path).images == {"train": 4, "test": 4}
    source = TfdsSource("cifar100", "train", tmp_path)
    assert source.class_names == tuple(fine)
    expected = zip(pixels(0), [99, 0, 50, 98], strict=True)
    assert by_pixels(source) == {image.tobytes(): label for image, label in expected}


def test_imagenette_keeps_its_files_and_its_wordnet_ids(publish, tmp_path, capsys):
    wnids = ["n01440764", "n02102040"]
    train = {f"train/{w}/{w}_{i}.JPEG": encoded(picture(i)) for w in wnids for i in range(3)}
    val = {f"val/{w}/ILSVRC2012_val_{i}.JPEG": encoded(picture(9 + i)) for i, w in enumerate(wnids)}
    other = {"noisy_imagenette.csv": b"text", "train/n01440764/.DS_Store": b"junk"}
    files = {f"imagenette2-160/{name}": data for name, data in (train | val | other).items()}
    publish("imagenette2-160.tgz", files)
    assert main(["prepare", "imagenette", "--data-dir", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "6 train, 2 validation images" in told
    assert "--data.source tfds:imagenette/160px-v2\n" in told
    for split, images in (("train", train), ("val", val)):
        source = TfdsSource("imagenette/160px-v2", split, tmp_path)
        assert len(source.class_names) == 10
        found = [source[i] for i in range(len(source))]
        expected = {(data, name.split("/")[1]) for name, data in images.items()}
        assert {(e.image, source.class_names[e.label]) for e in found} == expected


def test_an_archive_with_a_wrong_checksum_is_refused(publish, site, tmp_path, capsys):
    publish("cifar-10-binary.tar.gz", cifar10())
    archive = site[0] / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-1])
    command = ["prepare", "tfds:cifar10", "--data-dir", str(tmp_path)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{site[1]}/cifar-10-binary.tar.gz" in error
    assert f"save the file as {tmp_path}/cache/" in error
    assert not (tmp_path / "cifar10").exists()
    archive.unlink()
    assert main(command) == 2
    assert "404" in capsys.readouterr().err


def test_an_archive_that_was_downloaded_by_hand_is_used(publish, site, tmp_path):
    name = "cifar-10-binary.tar.gz"
    data = publish(name, cifar10())
    (site[0] / name).unlink()
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / name).write_bytes(data)
    with pytest.raises(UserError, match="404"):
        prepare("cifar10", data_dir=tmp_path)
    images = prepare("cifar10", data_dir=tmp_path, manual_dir=tmp_path / "hand").images
    assert images == {"train": 20, "test": 4}
    assert [each.name for each in (tmp_path / "hand").iterdir()] == [name]


def test_the_checksums_are_those_that_are_published():
    """torchvision, Keras and others know the archives by these, too."""
    import tensorflow_datasets as tfds

    known = {
        "cifar10": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar100": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "imagenette/160px-v2": "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5",
    }
    for name, checksum in known.items():
        assert checksum in {info.checksum for info in tfds.builder(name).url_infos.values()}


@pytest.mark.slow
def test_a_model_trains_on_cifar10_and_is_evaluated(publish, tmp_path, monkeypatch, capsys):
    import train

    publish("cifar-10-binary.tar.gz", cifar10())
    prepare("cifar10", data_dir=tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    options = "--epochs 1 --batch-size 8 --eval-batch-size 8 --data.image-size 16 "
    options += "--data.resize-to 16 --model.width-multiplier 0.0625 --model.stem small"
    run = str(tmp_path / "run")
    arguments = ["--data.source", "tfds:cifar10", "--workdir", run, *options.split()]
    assert train.main(arguments) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--data", "tfds:cifar10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
