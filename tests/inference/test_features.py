"""`gnet features` writes one row per image, in order, with the names and labels of the images."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import gnet_jax
from gnet_jax.cli.main import main
from gnet_jax.model_folder import write_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_a, make_photo):
    """A model, and photos of two classes in a folder."""
    root = tmp_path_factory.mktemp("features")
    write_folder(root / "model", model_a)
    for split, count in (("train", 5), ("val", 6), ("test", 2)):
        for name in ("cat", "ant"):
            (root / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                picture = make_photo(number, 40 + number, 50 - number)
                picture.save(root / "photos" / split / name / f"{number}.png")
    return root


def run(place, *arguments: str, out: str = "out.npz") -> tuple[int, dict[str, np.ndarray]]:
    code = main(["features", str(place / "model"), *arguments, "--out", str(place / out)])
    with np.load(place / out) as file:
        return code, dict(file)


def test_the_rows_of_a_folder_are_those_of_python(place):
    code, found = run(place, str(place / "photos"))
    files = sorted(map(str, (place / "photos").rglob("*.png")))
    assert (code, found["files"].tolist(), found["layer"]) == (0, files, "pool5/7x7_s1")
    assert found.keys() == {"features", "files", "layer"}
    model = gnet_jax.load(place / "model")
    np.testing.assert_array_equal(found["features"], model.features(place / "photos"))
    np.testing.assert_array_equal(found["features"], model.features(files))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_data_set_has_labels_and_class_names(place, split):
    data = f"folder:{place}/photos"
    _, found = run(place, data, "--split", split, "--layer", "inception_3a/output", "--flatten")
    assert found["class_names"].tolist() == ["ant", "cat"]
    for file, label in zip(found["files"], found["labels"], strict=True):
        assert f"/{split}/{found['class_names'][label]}/" in file
    model = gnet_jax.load(place / "model")
    expected = model.features(data, layer="inception_3a/output", flatten=True, split=split)
    assert len(expected) == {"train": 10, "val": 12}[split]
    np.testing.assert_array_equal(found["features"], expected)


def test_images_that_cannot_be_read_have_no_row_and_are_named(place, tmp_path, capsys):
    shutil.copytree(place / "photos" / "val" / "cat", tmp_path / "cat")
    (tmp_path / "cat" / "2.png").write_text("text")
    code, found = run(place, str(tmp_path), str(tmp_path / "absent.png"))
    assert code == 1
    assert [name[-5:] for name in found["files"]] == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    errors = capsys.readouterr().err
    assert "2.png: not an image" in errors
    assert "absent.png: cannot be read" in errors


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["photos/val", "--layer", "pool6"], "pool6"),
        (["absent.png"], "no image"),
        (["photos/val", "--out", "out.csv"], ".csv"),
        (["photos/val", "--out", "absent/out.npz"], "absent"),
        (["data.npz", "--out", "data.npz"], "is an input"),
        (["npz:data.npz#2", "--out", "data.npz"], "is an input"),
        (["npz:data.npz#train=3#holdout=10%", "--out", "data.npz"], "is an input"),
        (["npz:da{split}.npz", "--out", "daval.npz"], "is an input"),
        (["folder:photos", "--out", "photos/old.npz"], "is an input"),
        (["photos/val", "--threads", "0"], "--threads"),
        (["folder:absent"], "absent"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    place, capsys, monkeypatch, arguments, named
):
    monkeypatch.chdir(place)
    kept = {name: name.encode() for name in ("data.npz", "daval.npz", "photos/old.npz")}
    for name, content in kept.items():
        (place / name).write_bytes(content)
    before = set(place.rglob("*"))
    assert main(["features", "model", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert set(place.rglob("*")) == before
    for name, content in kept.items():
        assert (place / name).read_bytes() == content
        (place / name).unlink()


def test_a_full_disk_keeps_the_old_file(place, monkeypatch, capsys):
    run(place, str(place / "photos" / "val"), out="kept.npz")
    before = (place / "kept.npz").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    arguments = [str(place / "model"), str(place / "photos"), "--out", str(place / "kept.npz")]
    assert main(["features", *arguments]) == 2
    assert "No space left" in capsys.readouterr().err
    assert (place / "kept.npz").read_bytes() == before
    assert not (place / "kept.partial").exists()


def test_digits_need_no_files(place):
    code, found = run(place, "digits#7")
    assert (code, found["features"].shape[0]) == (0, 7)
    assert found["files"][0] == "digit 0 of val"
    assert found["labels"].shape == (7,)


def test_the_linear_probe_of_the_docs_reads_these_files(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for split in ("train", "val", "test"):
        run(place, "folder:photos", "--split", split, out=f"{split}.npz")
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    (code,) = re.findall(r"```python no-run\n(import numpy[^`]*sklearn[^`]*)```", page)
    exec(compile(code, "pretrained.md", "exec"), {})
    assert re.search(r"C=[\d.]+: \d+\.\d\d% of the test photos", capsys.readouterr().out)
