"""ImageNet out of tars in ILSVRC's layout: what comes out, survives a kill, and is refused."""

import contextlib
import errno
import fcntl
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import train
from gnet_jax.cli.main import main
from gnet_jax.config import Preprocessing
from gnet_jax.data.batches import eval_batches
from gnet_jax.data.decode import central_crop, decode
from gnet_jax.data.prepare import shards
from gnet_jax.data.prepare import tfds as prepare_module
from gnet_jax.data.prepare.shards import PrepareError
from gnet_jax.data.prepare.tfds import IMAGES, prepare
from gnet_jax.data.sources import DataError, open_source
from gnet_jax.data.sources.tfds import count_array_records, framed, record_ends
from tests.data.ilsvrc_tars import (
    CMYK,
    GREY,
    LABELS,
    PNG,
    VALIDATION_LABELS,
    encoded,
    picture,
    tar_of,
    train_images,
    validation_images,
    write_tars,
)

FORMATS = ("array_record", "tfrecord")
ROOT = Path(__file__).parents[2]
VERSION = "imagenet2012/5.1.0"


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder)
    return folder


@pytest.fixture(scope="module", params=FORMATS)
def imagenet(request, tars, tmp_path_factory):
    """A folder that holds the set, in either format, and the format."""
    folder = tmp_path_factory.mktemp(request.param)
    prepare(
        "imagenet2012", data_dir=folder, manual_dir=tars, file_format=request.param, subset=True
    )
    return folder, request.param


@pytest.fixture
def data_dir(imagenet, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(imagenet[0]))
    return imagenet[0]


def examples(split):
    source = open_source("tfds:imagenet2012", split)
    return [source[i] for i in range(len(source))]


def label_of(name):
    return LABELS[name.split("_")[0]]


def test_every_image_is_there_once_with_its_bytes_and_its_label(data_dir):
    plain = {n: data for n, data in train_images().items() if n not in (PNG, CMYK)}
    found = examples("train")
    assert len(found) == len(plain) + 2
    assert {(data, label_of(name)) for name, data in plain.items()} < set(found)
    assert sorted(e.label for e in found) == sorted(label_of(name) for name in train_images())
    validation = dict(zip(validation_images().values(), VALIDATION_LABELS, strict=True))
    assert {e.image: e.label for e in examples("val")} == validation
    names = open_source("tfds:imagenet2012", "train").class_names
    assert (len(names), names[0], names[-1]) == (1000, "n01440764", "n15075141")


@pytest.mark.parametrize(("name", "seed"), [(PNG, 901), (CMYK, 902)])
def test_other_images_become_rgb_jpegs_of_the_same_look(data_dir, name, seed):
    kept = set(train_images().values())
    new = [e for e in examples("train") if e.image not in kept and e.label == label_of(name)]
    assert len(new) == 1
    with Image.open(io.BytesIO(new[0].image)) as opened:
        assert (opened.format, opened.mode) == ("JPEG", "RGB")
    original = np.asarray(decode(train_images()[name]), int)
    difference = np.abs(np.asarray(decode(new[0].image), int) - original)
    assert difference.max() <= 6  # of saturated colours
    assert difference.mean() <= 0.6
    assert np.abs(original - np.asarray(picture(seed), int)).max() <= 12  # it is the right one


def test_grey_images_stay_as_they_are(data_dir):
    assert (train_images()[GREY], label_of(GREY)) in examples("train")


def test_tensorflow_datasets_finds_and_reads_the_set(imagenet):
    import tensorflow_datasets as tfds

    folder, file_format = imagenet
    builder = tfds.builder_from_directory(str(folder / VERSION))
    assert builder.info.full_name == VERSION
    assert builder.info.splits["train"].num_examples == 27
    if file_format != "array_record":
        return
    source = tfds.data_source("imagenet2012", split="train", data_dir=str(folder))
    originals = train_images()
    for example in source:
        name = example["file_name"].decode()
        assert example["label"] == label_of(name)
        if name not in (PNG, CMYK, GREY):
            np.testing.assert_array_equal(example["image"], np.asarray(decode(originals[name])))


def test_the_order_is_that_of_tensorflow_datasets(tmp_path, tars):
    """tfds is given the same keys; it needs no TensorFlow for encoded images."""
    import tensorflow_datasets as tfds

    class SameKeys(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(train_images()),
                "validation": self._generate_examples(validation_images()),
            }

        def _generate_examples(self, images=None):
            for name, data in images.items():
                yield name, {"image": io.BytesIO(data), "label": name}

    theirs = SameKeys(data_dir=str(tmp_path / "theirs"), file_format="array_record")
    theirs.download_and_prepare()
    prepare("imagenet2012", data_dir=tmp_path / "ours", manual_dir=tars, subset=True)
    for split in ("train", "validation"):
        expected = [e["label"] for e in theirs.as_data_source(split)]
        ours = tfds.data_source("imagenet2012", split=split, data_dir=str(tmp_path / "ours"))
        assert [e["file_name"] for e in ours] == expected


def test_batches_hold_what_the_tars_held(data_dir):
    """The same pixels and labels as from the images themselves, so the same in both formats."""
    preprocessing = Preprocessing(image_size=24, resize_to=24)
    options = {"batch_size": 4, "preprocessing": preprocessing, "threads": 2}
    found = {}
    for batch in eval_batches(open_source("tfds:imagenet2012", "val"), **options):
        for image, label in zip(batch["image"][batch["mask"]], batch["label"], strict=False):
            found[image.tobytes()] = label
    originals = [central_crop(decode(data), preprocessing) for data in validation_images().values()]
    expected = zip(originals, VALIDATION_LABELS, strict=True)
    assert found == {image.tobytes(): label for image, label in expected}


@pytest.mark.slow
def test_train_py_and_gnet_evaluate_work_on_the_set(data_dir, tmp_path, capsys):
    options = {
        "workdir": tmp_path / "run",
        "epochs": 1,
        "batch-size": 8,
        "eval-batch-size": 8,
        "data.source": "tfds:imagenet2012",
        "data.image-size": 33,
        "data.resize-to": 33,
        "model.width-multiplier": 1 / 16,
        "model.stem": "small",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert train.main(arguments) == 0
    told = capsys.readouterr().out
    assert "27 training and 6 validation images (validation split), 1000 classes" in told
    model = str(tmp_path / "run")
    assert main(["evaluate", model, "--data", "tfds:imagenet2012", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6


def split_in(count):
    """Cuts a split into `count` files, which tensorflow-datasets does for GBs only."""
    return lambda records, size: [records * i // count for i in range(count + 1)]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("file_format", FORMATS)
def test_files_that_are_whole_are_not_written_again(tmp_path, tars, monkeypatch, file_format):
    options = {"manual_dir": tars, "file_format": file_format, "subset": True, "threads": 2}
    monkeypatch.setattr(prepare_module, "boundaries", split_in(5))
    whole = prepare("imagenet2012", data_dir=tmp_path / "whole", **options).folder

    written, reader = [], prepare_module.reader

    def failing(tar):
        read = reader(tar)

        def after_twelve(member):
            if len(written) >= 12:  # of two threads
                raise PrepareError("the storage is gone")
            written.append(member.name)
            return read(member)

        return after_twelve

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "reader", failing)
        with pytest.raises(PrepareError, match="storage is gone"):
            prepare("imagenet2012", data_dir=tmp_path / "cut", **options)
    work = tmp_path / "cut" / f"{VERSION}.unfinished-{file_format}"
    assert not (tmp_path / "cut" / VERSION).exists()
    before = {file.name: file.stat().st_mtime_ns for file in work.glob("imagenet2012-*-of-00005")}
    assert 0 < len(before) < 5

    folder = prepare("imagenet2012", data_dir=tmp_path / "cut", **options).folder
    assert not work.exists()
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert sorted(contents(folder)) == sorted(contents(whole))
    assert not list(folder.glob("*.part"))
    read = [TfdsExamples(path) for path in (tmp_path / "cut", tmp_path / "whole")]
    assert read[0].train == read[1].train


class TfdsExamples:
    def __init__(self, data_dir):
        from gnet_jax.data.sources.tfds import TfdsSource

        source = TfdsSource("imagenet2012", "train", data_dir)
        self.train = [source[i] for i in range(len(source))]


SLOWLY = """
import sys, time
from pathlib import Path
from gnet_jax.data.prepare import tfds as prepare
reader = prepare.reader
def slow(tar):
    read = reader(tar)
    return lambda member: (time.sleep(0.02), read(member))[1]
prepare.reader = slow
prepare.boundaries = lambda records, size: [records * i // 6 for i in range(7)]
tars, folder, file_format = sys.argv[1:]
prepare.open_builder("imagenet2012", Path(folder))  # takes a while the first time
print("begin", flush=True)
prepare.prepare("imagenet2012", data_dir=Path(folder), manual_dir=Path(tars),
                file_format=file_format, subset=True, threads=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_set(tmp_path, tars, file_format):
    arguments = [sys.executable, "-c", SLOWLY, str(tars), str(tmp_path), file_format]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    work = tmp_path / f"{VERSION}.unfinished-{file_format}"
    kills, kept = 0, []
    for _ in range(20):
        process = subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            # The first wait is shorter than what the reader sleeps: one kill there is.
            process.wait(random.uniform(0, 0.6 if kills else 0.2) if kills < 4 else None)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process.stdout.close()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        if (tmp_path / VERSION).exists():  # it was being checked
            assert len(TfdsExamples(tmp_path).train) == 27
        else:
            kept.append(len(list(work.glob("*-of-00006"))))
    assert kills >= 1
    assert kept == sorted(kept)  # what was whole stayed
    originals = {(n, d) for n, d in train_images().items() if n not in (PNG, CMYK)}
    found = TfdsExamples(tmp_path).train
    assert len(found) == 27
    assert {(data, label_of(name)) for name, data in originals} < set(found)


def test_a_prepared_set_is_checked_and_not_changed(imagenet, tars, tmp_path, capsys):
    folder, file_format = imagenet
    before = contents(folder / VERSION)
    command = ["prepare", "tfds:imagenet2012", "--manual-dir", str(tmp_path)]  # without tars
    assert main([*command, "--data-dir", str(folder), "--format", file_format]) == 0
    assert contents(folder / VERSION) == before
    assert "27 train, 6 validation images" in capsys.readouterr().out
    other = next(f for f in FORMATS if f != file_format)
    assert main([*command, "--data-dir", str(folder), "--format", other]) == 2
    assert f"as {file_format}" in capsys.readouterr().err


def test_tars_that_are_missing_or_hold_too_little_are_named(tars, tmp_path):
    with pytest.raises(PrepareError, match=r"ILSVRC2012_img_train.tar.*ILSVRC2012_img_val.tar"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tmp_path)
    with pytest.raises(PrepareError, match=r"27 .*1,281,167.*--subset"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars)
    assert IMAGES == {"train": 1_281_167, "validation": 50_000}


def cut(data):
    return data[: len(data) // 2]


def without_end(data):
    """As a download that stops between two members."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return data[: archive.getmembers()[2].offset]


def flipped_header(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        at = archive.getmembers()[1].offset
    return data[: at + 5] + b"\xff" + data[at + 6 :]


def flipped_inner_header(data):
    at = data.index(b"n02105855_3.JPEG")
    return data[: at + 5] + b"\xff" + data[at + 6 :]


@pytest.mark.parametrize("harm", [cut, without_end, flipped_header, flipped_inner_header])
def test_a_tar_that_is_damaged_or_cut_short_is_refused(tars, tmp_path, harm):
    for tar in tars.iterdir():
        shutil.copy(tar, tmp_path)
    damaged = tmp_path / "ILSVRC2012_img_train.tar"
    damaged.write_bytes(harm(damaged.read_bytes()))
    with pytest.raises(PrepareError, match=r"train.tar is .*1d675b47d978889d74fa0da5fadfb00e"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tmp_path, subset=True)


@pytest.mark.parametrize("content", [b"", b"<html>no</html>", encoded(picture(1), "PNG")[:60]])
def test_a_file_that_is_not_an_image_is_refused_by_name(tmp_path, content):
    write_tars(tmp_path, train_images() | {"n02105855_3.JPEG": content})
    with pytest.raises(PrepareError, match=r"n02105855_3.JPEG in .*train.tar"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tmp_path, subset=True)
    assert not (tmp_path / VERSION).exists()


def test_files_of_other_names_and_links_in_a_tar_are_left_alone(tars, tmp_path):
    for tar in tars.iterdir():
        shutil.copy(tar, tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("../../evil.sh"), io.BytesIO())
        link = tarfile.TarInfo("ILSVRC2012_val_00000007.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = prepare("imagenet2012", data_dir=tmp_path, manual_dir=tmp_path, subset=True)
    assert found.images == {"train": 27, "validation": 6}


def test_files_of_other_tars_are_not_reused(tars, tmp_path, monkeypatch):
    for tar in tars.iterdir():
        shutil.copy(tar, tmp_path)
    work = tmp_path / f"{VERSION}.unfinished-array_record"
    options = {"data_dir": tmp_path, "manual_dir": tmp_path, "subset": True}

    def fail(member):
        raise PrepareError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "reader", lambda tar: fail)
        for changed in (0, 1):  # nothing is written yet, so other tars do no harm
            os.utime(tmp_path / "ILSVRC2012_img_val.tar", (changed, changed))
            with pytest.raises(PrepareError, match="stopped"):
                prepare("imagenet2012", **options)
    (work / "imagenet2012-train.array_record-00000-of-00001").write_bytes(b"")
    os.utime(tmp_path / "ILSVRC2012_img_val.tar", (2, 2))
    with pytest.raises(PrepareError, match=str(work)):
        prepare("imagenet2012", **options)


def test_two_at_once_do_not_write_the_same_files(tars, tmp_path):
    work = tmp_path / f"{VERSION}.unfinished-array_record"
    with (
        shards._locked(work),
        pytest.raises(PrepareError, match=f"another process is writing {work}"),
    ):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars, subset=True)


def test_a_disk_that_is_full_from_the_start_is_one_sentence(tars, tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(PrepareError, match=r"cannot write .*: No space left on device; run the"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars, subset=True)


def test_a_set_that_another_process_has_finished_is_not_written_again(tars, tmp_path, monkeypatch):
    def finished(path, made=shards._locked):
        (path.parent / Path(VERSION).name).mkdir(parents=True)  # between the check and the lock
        return made(path)

    monkeypatch.setattr(shards, "_locked", finished)
    with pytest.raises(PrepareError, match=f"another process has written .*{VERSION}; run"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars, subset=True)
    assert not [*tmp_path.rglob("*.unfinished*")]


def test_a_file_system_without_locks_is_named(tars, tmp_path, monkeypatch):
    without = mock.Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(PrepareError, match=r"/lock: No locks available"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars, subset=True)


def test_a_disk_that_is_too_small_is_noticed_before_writing(tars, tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5000, 5000))
    with pytest.raises(PrepareError, match=r"has 0\.0 GB free"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars, subset=True)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_that_cannot_be_written_whole_does_not_get_its_name(tmp_path, file_format):
    """A limit on the size of files stands for a full disk."""
    script = (
        "import resource, sys; from pathlib import Path; from gnet_jax.data.prepare import shards\n"
        "from gnet_jax.data.prepare.shards import PrepareError, SplitPlan\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    plan = SplitPlan('train', [0, 9], lambda i: __import__('os').urandom(50_000))\n"
        "    shards._write_split([Path(sys.argv[1], 'a')], plan, sys.argv[2], 1)\n"
        "except PrepareError as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", script, str(tmp_path), file_format]
    told = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"cannot write {tmp_path / 'a'}: "), told
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("free", "enough"), [(0, True), (-1, False)])
def test_the_free_space_must_be_the_size_of_the_tars_and_a_fiftieth(
    tars, tmp_path, monkeypatch, free, enough
):
    size = 1.02 * sum(tar.stat().st_size for tar in tars.iterdir())
    usage = type(shutil.disk_usage(tmp_path))
    checked = mock.Mock(side_effect=PrepareError("checked"))
    monkeypatch.setattr(shards, "_write_split", checked)

    def free_space(work):  # the origin is already written
        return usage(10**9, 0, size - (work / "origin.txt").stat().st_size + free)

    monkeypatch.setattr(shutil, "disk_usage", free_space)
    with pytest.raises(PrepareError, match="checked" if enough else "GB free"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars, subset=True)


def test_a_tar_of_other_files_or_with_an_image_twice_is_refused(tars, tmp_path):
    for tar in tars.iterdir():
        shutil.copy(tar, tmp_path)
    validation = tmp_path / "ILSVRC2012_img_val.tar"
    with tarfile.open(validation, "a") as archive:
        archive.addfile(tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG"), io.BytesIO())
    with pytest.raises(PrepareError, match=r"img_val\.tar has several images of the same name"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tmp_path, subset=True)
    for name, problem in (
        ("readme.txt", "no images"),
        ("ILSVRC2012_val_00000000.JPEG", "00000000"),
        ("ILSVRC2012_val_00050001.JPEG", "00050001"),
    ):
        validation.write_bytes(tar_of({name: b"text"}))
        with pytest.raises(PrepareError, match=rf"img_val\.tar .*{problem}"):
            prepare("imagenet2012", data_dir=tmp_path, manual_dir=tmp_path, subset=True)


def test_a_class_that_the_challenge_does_not_have_is_refused(tmp_path):
    write_tars(tmp_path)
    unknown = tar_of({"n99999999.tar": tar_of({"n99999999_1.JPEG": b"text"})})
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(unknown)
    with pytest.raises(PrepareError, match="n99999999"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tmp_path, subset=True)


@pytest.mark.parametrize("file_format", FORMATS)
def test_records_are_written_once_each_into_the_files_that_the_bounds_name(tmp_path, file_format):
    plan = shards.SplitPlan("train", [0, 1, 1, 4, 7], lambda i: bytes([i]) * (i + 1))
    files = [tmp_path / str(i) for i in range(4)]
    for _ in range(2):  # the second call finds all of them
        shards._write_split(files, plan, file_format, 3)
        if file_format == "tfrecord":
            counts = [len(record_ends(file)) for file in files]
            written = b"".join(file.read_bytes() for file in files)
            for i in range(7):
                assert written.count(framed(bytes([i]) * (i + 1))) == 1
        else:
            counts = [count_array_records(str(file)) for file in files]
        assert counts == [1, 0, 3, 3]
        plan = plan._replace(record=None)


@pytest.mark.parametrize("file_format", FORMATS)
def test_files_are_on_the_disk_before_they_get_their_names(tmp_path, monkeypatch, file_format):
    synced = []

    def fsync(number):
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        synced.append((path.name, path.stat().st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    plan = shards.SplitPlan("train", [0, 2, 3], lambda i: b"x")
    files = [tmp_path / name for name in "ab"]
    shards._write_split(files, plan, file_format, 1)
    assert synced == [(f"{file.name}.part", file.stat().st_size) for file in files]


def test_a_file_with_fewer_records_than_planned_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_write_file", lambda path, records, _: len(list(records)) - 1)
    plan = shards.SplitPlan("train", [0, 5], lambda i: b"x")
    with pytest.raises(PrepareError, match=r"/a: the file has 4 of 5 records"):
        shards._write_split([tmp_path / "a"], plan, "tfrecord", 1)
    assert not (tmp_path / "a").exists()


def test_progress_begins_with_what_an_earlier_call_has_written(tmp_path, monkeypatch):
    line = mock.MagicMock()
    monkeypatch.setattr(shards, "progress_line", line)
    (tmp_path / "a").touch()
    plan = shards.SplitPlan("train", [0, 2, 7], lambda i: b"x")
    shards._write_split([tmp_path / "a", tmp_path / "b"], plan, "tfrecord", 1)
    assert line.call_args.args == ("writing train", "images", 7, 2)


def test_the_number_of_files_is_that_for_the_size_of_the_examples(tars, tmp_path, monkeypatch):
    boundaries = mock.Mock(side_effect=lambda records, _: [0, records])
    monkeypatch.setattr(prepare_module, "boundaries", boundaries)
    prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars, subset=True)
    sizes = [
        (len(images), sum(len(data) + len(name) + 80 for name, data in images.items()))
        for images in (train_images(), validation_images())
    ]
    assert [call.args for call in boundaries.call_args_list] == sizes


def test_the_first_failure_stops_the_other_files(tmp_path):
    written = []

    def record(index):
        if index == 0:
            raise PrepareError("the first")
        written.append(index)
        time.sleep(0.001)
        return b"x"

    plan = shards.SplitPlan("train", [0, 10, 5000], record)
    with pytest.raises(PrepareError, match="the first"):
        shards._write_split([tmp_path / "a", tmp_path / "b"], plan, "tfrecord", 2)
    assert len(written) < 4000
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_shards_are_cut_as_tensorflow_datasets_cuts_imagenet():
    bounds = shards.boundaries(1_281_167, 144_000_000_000)
    assert len(bounds) == 1025
    assert shards.boundaries(7, 1000) == [0, 7]
    assert (bounds[0], bounds[1], bounds[-1]) == (0, 1251, 1_281_167)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet2012"], "'imagenet2012'"),
        (["tfds:no_such_set"], "'no_such_set'"),
        (["tfds:imdb_reviews"], "imdb_reviews"),
        (["tfds:imagenet2012", "--threads", "0"], "--threads is 0"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, tmp_path, capsys):
    assert main(["prepare", *arguments, "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gnet: error: ")
    assert message in error


def test_a_set_that_lacks_files_is_refused(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "boundaries", split_in(3))
    folder = prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars, subset=True).folder
    (folder / "imagenet2012-train.array_record-00001-of-00003").unlink()
    with pytest.raises(DataError, match=r"train.array_record-00001-of-00003"):
        prepare("imagenet2012", data_dir=tmp_path, manual_dir=tars, subset=True)


def test_the_time_left_is_printed_without_a_terminal(capsys, monkeypatch):
    from gnet_jax.data import progress as module

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with module.progress_line("writing train", "images", 1000, 100) as advance:
        for _ in range(100):
            now[0] += 0.5
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["writing train: 160 of 1,000 images, 2.0 images/s, 7.0 min left"]
