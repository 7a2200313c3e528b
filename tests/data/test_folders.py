"""Every entry of a folder of images is read or counted, whatever it is and is called."""

import contextlib
import inspect
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.config import UserError
from gnet_jax.config.paths import as_text, typed_path
from gnet_jax.data.sources import DataError, MissingSplitError, folder, open_source
from gnet_jax.data.sources.folder import REASONS


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (value % 256, value // 256, 7)).save(file, "PNG")
    return file.getvalue()


COUNT = iter(range(10**4))


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(next(COUNT)))


@pytest.fixture
def root(tmp_path):
    """Two photos of each of two classes, in both splits."""
    root = tmp_path / "set"
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(2):
                write(root / split / name / f"{i}.png")
    return root


def train(root):
    return open_source(f"folder:{root}", "train")


def paths(source):
    return [source.describe(i).removeprefix(f"{source.root}/") for i in range(len(source))]


def left_out(root):
    """What is left out of train, its paths from the root on."""
    found = train(root).left_out
    return {
        reason: [path.removeprefix(f"{root}/") for path in names] for reason, names in found.items()
    }


def test_images_in_nested_folders_are_read_after_those_beside_them(root):
    for name in ("more/1.png", "more/a/2.PNG", "more b/3.png", "Z.png"):
        write(root / "train" / "cat" / name)
    source = train(root)
    cats = ["0.png", "1.png", "Z.png", "more/1.png", "more/a/2.PNG", "more b/3.png"]
    assert paths(source)[:6] == [f"train/cat/{name}" for name in cats]
    assert [source[i].label for i in range(len(source))] == [0] * 6 + [1] * 2
    assert source[4].image == (root / "train/cat/more/a/2.PNG").read_bytes()
    assert source.describe(4) == str(root / "train/cat/more/a/2.PNG")
    assert source.left_out == {}


def test_the_fingerprint_of_a_folder_without_nested_ones_is_the_one_of_earlier_runs(tmp_path):
    for name in ("a/1.jpg", "a/10.png", "a/2.jpg", "b/x.jpg"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    assert train(tmp_path).fingerprint() == "f951ca405fd0f6b4"
    (tmp_path / "train/b/c").mkdir()
    (tmp_path / "train/b/x.jpg").rename(tmp_path / "train/b/c/x.jpg")
    assert train(tmp_path).fingerprint() != "f951ca405fd0f6b4"


def test_every_entry_that_is_not_read_is_counted_under_its_reason(root):
    cat = root / "train" / "cat"
    for name in ("a.HEIC", "b.jxl", "c.txt", "noname", ".hidden.png", "Thumbs.db", "._0.png"):
        (cat / name).write_bytes(b"x")
    (cat / "gone.png").symlink_to(root / "nowhere.png")
    (cat / "self.png").symlink_to("self.png")
    os.mkfifo(cat / "pipe.png")
    write(cat / "@eaDir" / "1.png")
    write(cat / "nested" / ".ipynb_checkpoints" / "1.png")
    (cat / "empty").mkdir()
    write(root / "train" / ".owl" / "1.png")
    write(root / "train" / "stray.png")
    (root / "train" / "notes.md").write_text("x")
    (root / "train" / "eel").symlink_to(root / "nowhere")
    assert left_out(root) == {
        "broken link": ["train/eel", "train/cat/gone.png", "train/cat/self.png"],
        "unsupported format": ["train/cat/a.HEIC", "train/cat/b.jxl"],
        "outside a class": ["train/stray.png"],
        "hidden": [
            *("train/.owl/", "train/cat/._0.png", "train/cat/.hidden.png"),
            "train/cat/nested/.ipynb_checkpoints/",
        ],
        "junk": ["train/cat/@eaDir/", "train/cat/Thumbs.db"],
        "other suffix": ["train/notes.md", "train/cat/c.txt", "train/cat/noname"],
        "not a file": ["train/cat/pipe.png"],
        "empty folder": ["train/cat/empty/"],
    }
    assert train(root).class_names == ("cat", "dog")
    assert len(train(root)) == 4


def test_check_data_names_what_is_left_out_and_fails_where_images_are_lost(root, capsys):
    command = ["check-data", f"folder:{root}"]
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "val" / "cat" / "._1.png").write_text("x")
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == {
        "hidden": [f"{root}/val/cat/._1.png"],
        "other suffix": [f"{root}/train/cat/notes.txt"],
    }
    (root / "train" / "cat" / "a.heic").write_bytes(b"x")
    (root / "train" / "owl").symlink_to("nowhere")
    assert main([*command, "--json"]) == 1
    (lost,) = json.loads(capsys.readouterr().out)["must_be_mended"]
    assert "broken link 1, unsupported format 1" in lost
    assert main(command) == 1
    output = capsys.readouterr().out
    for name in ("train/owl", "a.heic", "notes.txt", "._1.png"):
        assert f"{root}" in output
        assert name in output
    assert main(["check-data", f"folder:{root}#3", "--json"]) == 1  # a part hides nothing
    assert json.loads(capsys.readouterr().out)["left_out"].keys() == {
        "broken link",
        "unsupported format",
        "hidden",
        "other suffix",
    }


def test_linked_folders_are_followed_and_none_is_read_twice(root, tmp_path):
    for i in range(3):
        write(tmp_path / "elsewhere" / "deep" / f"{i}.png")
    cat = root / "train" / "cat"
    (cat / "link").symlink_to(tmp_path / "elsewhere")
    (cat / "link2").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (cat / "up").symlink_to("..")
    (root / "train" / "eel").symlink_to(tmp_path / "elsewhere")
    source = train(root)
    assert paths(source)[2:5] == [f"train/cat/link/deep/{i}.png" for i in range(3)]
    assert [source[i].label for i in range(len(source))] == [0] * 5 + [1] * 2 + [2] * 3
    assert left_out(root) == {
        "repeated folder": [
            *("train/cat/link/back/", "train/cat/link2/", "train/cat/up/"),
            "train/eel/back/",
        ]
    }


def test_more_folders_in_each_other_than_python_has_frames_are_walked(root):
    deep = root.joinpath("train", "cat", *["d"] * 200)
    deep.mkdir(parents=True)
    write(deep / "1.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    try:
        assert len(train(root)) == 5
    finally:
        sys.setrecursionlimit(limit)


def test_the_folders_beside_a_missing_split_are_named(root):
    (root / "val").rename(root / "validation")
    with pytest.raises(
        MissingSplitError,
        match=r"/val not found.*train, validation.*train, use 'folder:.*#holdout=10%'",
    ):
        open_source(str(root), "val")


def test_classes_without_a_split_are_told_where_to_go(root):
    with pytest.raises(MissingSplitError, match=r"move them into .*train/train and use 'folder:"):
        open_source(str(root / "train"), "val")


def test_other_folders_beside_the_splits_are_ignored(root):
    for name in ("raw", "labels", "backup"):
        (root / name).mkdir()
    (root / "test").symlink_to("val")
    (root / "Train").symlink_to("train")  # as on disks where case does not count
    assert train(root).left_out == {}


def test_an_empty_class_is_refused_in_training_alone(root):
    (root / "val" / "dog" / "0.png").rename(root / "val" / "dog" / "0.heic")
    (root / "val" / "dog" / "1.png").unlink()
    assert len(open_source(str(root), "val")) == 2
    (root / "train" / "eel").mkdir()
    (root / "train" / "eel" / "1.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"train/eel .*unsupported format 1"):
        train(root)


def unlistable(monkeypatch, path):
    """Have the system refuse to list `path`, which root alone could do."""
    scandir = os.scandir

    def refusing(folder):
        if os.fspath(folder) == str(path):
            raise PermissionError(13, "Permission denied", os.fspath(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)


@pytest.mark.parametrize("place", ["train", "train/cat", "train/cat/more"])
def test_a_folder_that_cannot_be_listed_is_one_sentence(root, place, monkeypatch, capsys):
    write(root / "train" / "cat" / "more" / "1.png")
    unlistable(monkeypatch, root / place)
    assert main(["check-data", str(root)]) == 2
    error = capsys.readouterr().err
    assert f"{root / place}: Permission denied" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["check-data"], ["prepare", "--resize", "32", "--out", "copy"]], ids=lambda c: c[0]
)
def test_an_image_that_cannot_be_read_is_named(root, command, monkeypatch, capsys):
    pytest.importorskip("array_record")
    monkeypatch.chdir(root)
    shut, read = root / "train" / "dog" / "1.png", type(root).read_bytes

    def refusing(path):
        if path == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(type(root), "read_bytes", refusing)
    code = main([command[0], f"folder:{root}", *command[1:]])
    output = capsys.readouterr()
    assert code == (1 if command[0] == "check-data" else 2)
    assert str(shut) in output.out + output.err
    assert "Permission denied" in output.out + output.err
    assert "cannot write" not in output.err


def test_an_image_that_is_gone_since_the_folder_was_listed_is_named(root):
    source = train(root)
    (root / "train" / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match=r"train/dog/1\.png"):
        source.fingerprint()


def test_predict_walks_as_training_does(root, monkeypatch):
    from gnet_jax.inference.images import Pictures

    cat = root / "train" / "cat"
    write(cat / "more" / "1.png")
    (cat / "more" / "up").symlink_to(root)
    (cat / "gone.png").symlink_to("nowhere")
    (cat / "a.heic").write_bytes(b"x")
    (cat / ".hidden.png").write_bytes(b"x")
    (cat / "shut").mkdir()
    unlistable(monkeypatch, cat / "shut")
    pictures = Pictures([str(cat)])
    found = {
        name.removeprefix(f"{cat}/"): image if isinstance(image, UserError) else 1
        for name, image, _ in pictures
    }
    assert [name for name in found if isinstance(found[name], int)] == [
        *("0.png", "1.png", "more/1.png")
    ]
    assert str(found["gone.png"]) == "is a broken link"
    assert "Permission denied" in str(found["shut"])
    assert {reason: len(paths) for reason, paths in pictures.left_out.items()} == {
        "hidden": 1,
        "repeated folder": 1,
        "unsupported format": 1,
    }


LATIN = os.fsdecode(b"caf\xe9")


def test_a_class_name_is_text_whatever_the_folder_is_called(root, capsys):
    for split in ("train", "val"):
        write(root / split / LATIN / "1.png")
        write(root / split / "two\nlines" / "1.png")
    source = train(root)
    assert source.class_names == (r"caf\xe9", "cat", "dog", r"two\nlines")
    assert os.fsencode(source.describe(0)).endswith(b"caf\xe9/1.png")
    assert source[0].label == 0
    assert source.fingerprint()
    assert source.class_names == open_source(str(root), "val").class_names
    assert main(["check-data", str(root)]) == 0
    assert r"caf\xe9" in capsys.readouterr().out
    write(root / "train" / r"caf\xe9" / "1.png")
    with pytest.raises(DataError, match=r"caf\\xe9"):
        train(root)


def test_text_that_is_not_a_file_name_is_made_valid_too():
    assert as_text("naïve 猫 \\x") == "naïve 猫 \\x"
    assert as_text("\ud800\udc41\x00\x1b\u2028") == r"\ud800\udc41\x00\x1b\u2028"
    as_text("".join(map(chr, range(0x11000)))).encode("utf-8")


def test_a_set_of_unprintable_names_is_copied(root, tmp_path):
    from gnet_jax.data.prepare.pack import pack

    pytest.importorskip("array_record")
    for split in ("train", "val"):
        write(root / split / LATIN / "1.png")
    (root / "val" / "cat" / "a.heic").write_bytes(b"x")
    prepared = pack(f"folder:{root}", tmp_path / "copy", 32)
    assert prepared.images == {"train": 5, "validation": 5}
    assert prepared.left_out == {"unsupported format": [f"{root}/val/cat/a.heic"]}
    labels = (prepared.folder / "label.labels.txt").read_text("utf-8").split("\n")
    assert labels[:3] == [r"caf\xe9", "cat", "dog"]


def test_a_path_that_exists_wins_over_a_count(root, tmp_path, monkeypatch):
    for name in ("set#2", "a\nb", "digits#5"):
        for i in range(7):
            write(tmp_path / name / "train" / "cat" / f"{i}.png")
        write(tmp_path / name / "train" / "dog" / "1.png")
    monkeypatch.chdir(tmp_path)
    for spec, images in {
        "folder:set#2": 8,
        f"folder:{tmp_path}/set#2": 8,
        "set#2": 8,
        "folder:set#2#3": 3,
        "folder:set#3": 3,
        "set#3": 3,
        "folder:a\nb#3": 3,
        "digits#5": 8,
        "digits#6": 6,
    }.items():
        assert len(open_source(spec, "train")) == images, spec


def pixels(count):
    """Random grey images (count, 8, 8), because a constant one is refused."""
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8), np.uint8)


def test_a_folder_of_arrays_that_exists_wins_over_a_count(tmp_path, monkeypatch):
    def save(name, count):
        with open(tmp_path / name, "wb") as file:
            np.savez(file, x=pixels(count), y=np.arange(count) % 2)

    monkeypatch.chdir(tmp_path)
    save("a_train.npz", 9)
    (tmp_path / "of#4").mkdir()
    save("of#4/TRAIN.npz".lower(), 6)
    assert len(open_source("npz:a_{split}.npz#3", "train")) == 3
    assert len(open_source("npz:of#4", "train")) == 6
    assert len(open_source("npz:of#4#2", "train")) == 2


def test_a_tilde_in_the_name_of_an_existing_folder_is_not_a_home(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(open_source("folder:~/set", "train")) == 4
    root.rename(root.parent / "~nobody-here")
    assert len(open_source("folder:~nobody-here", "train")) == 4
    assert typed_path("~nobody-there/x").parts[0] == "~nobody-there"


def test_existing_files_win_over_urls(tmp_path, monkeypatch):
    from gnet_jax.inference.images import Pictures

    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:" / "127.0.0.1:1").mkdir(parents=True)
    for name in ("http:/127.0.0.1:1/a.jpg", "-"):
        Image.new("RGB", (3, 4)).save(tmp_path / name, "PNG")
    for _, picture, _ in Pictures(["http://127.0.0.1:1/a.jpg", "./-"]):
        assert isinstance(picture, Image.Image)


def test_every_reason_is_explained():
    lost = ("broken link", "unsupported format", "outside a class")
    assert tuple(REASONS)[:3] == folder.IMAGES_LOST == lost
    assert (
        folder.counted({"junk": list(map(str, range(1234))), "broken link": ["b"]})
        == "broken link 1, junk 1,234"
    )


def test_the_plan_of_a_run_counts_what_is_not_read(root, monkeypatch, capsys):
    import train as command

    (root / "train" / "cat" / "a.heic").write_bytes(b"x")
    (root / "val" / "owl").symlink_to("nowhere")
    monkeypatch.setattr(
        "gnet_jax.training.loop.train", lambda *_, **__: pytest.fail("only the plan")
    )
    fields = ["--data.source", str(root), "--batch-size", "8", "--workdir", str(root / "run")]
    with contextlib.suppress(pytest.fail.Exception):
        command.main(["folder", *fields])
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.lstrip().startswith("skipped ")]
    assert "broken link 1, unsupported format 1" in line


def test_a_walk_goes_on_after_a_folder_that_cannot_be_listed(root, monkeypatch):
    for name in ("a", "b", "c"):
        write(root / "walked" / name / "1.png")
    unlistable(monkeypatch, root / "walked" / "b")
    errors, left_out = [], {}
    found = list(folder.walk(str(root / "walked"), left_out, errors.append))
    assert found == [str(root / "walked" / name / "1.png") for name in ("a", "c")]
    assert [error.filename for error in errors] == [str(root / "walked" / "b")]
    assert left_out == {}
