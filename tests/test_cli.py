import csv
import dataclasses
import functools
import io
import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import pytest
import yaml
from PIL import Image
from tyro.conf import Positional

import gnet_jax
from gnet_jax.cli import lab, train
from gnet_jax.cli.main import COMMANDS, main
from gnet_jax.cli.output import (
    PHOTOS,
    check_not_input,
    check_picture,
    console,
    set_up_process,
    several,
)
from gnet_jax.config import Config, Preprocessing, UserError
from gnet_jax.data.prepare.tfds import Prepared
from gnet_jax.lab.sweeps import ablate
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import TrainedModel, read_folder, write_folder
from gnet_jax.pods import plan, topology
from gnet_jax.pods.plan import Collective, CompiledCost
from gnet_jax.pods.topology import Chip
from gnet_jax.training import program
from gnet_jax.training.hosts import start, supervise
from gnet_jax.training.loop import Result
from gnet_jax.training.workdir import MetricsFile
from tests.lab.sweeps import finished_sweep
from tests.tiny import tiny_arch, tiny_run, tiny_variables, with_program


def test_summary_as_json_holds_the_counts_of_the_paper(capsys):
    assert main(["summary", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == 6_998_552
    assert found["params_with_aux"] == 13_378_280
    assert found["macs"] == 1_582_671_872
    assert found["macs_with_aux"] == 1_591_044_096
    assert found["layers"][0] == {
        "name": "conv1",
        "kind": "conv",
        "kernel": [7, 7, 3, 64],
        "stride": 2,
        "output": [112, 112, 64],
        "params": 9472,
        "macs": 118_013_952,
    }


def test_summary_as_csv_has_a_line_for_each_layer(capsys):
    assert main(["summary", "--format", "csv", "--variant", "batch_norm"]) == 0
    output = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(output)))
    assert len(output.splitlines()) == len(rows) + 1
    assert sum(int(row["params"]) for row in rows) == 13_385_816
    assert rows[0]["kernel"] == "7x7x3x64"


def test_summary_as_a_table_shows_the_sums_and_the_worked_examples(capsys):
    assert main(["summary", "--num-classes", "10", "--aux-after"]) == 0
    text = capsys.readouterr().out
    for number in ("5,983,802", "1,581,658,112", "112,896,000", "5,268,480", "51,380,224"):
        assert number in text
    assert "auxiliary" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--image-size", "20"], "20x20 .*47x47"), (["--aux-after", "6a"], "aux_after .*'6a'")],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert main(["summary", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gnet: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model folder, and photos of two classes beside one file that is no photo."""
    root = tmp_path_factory.mktemp("cli")
    model = GoogLeNet(dataclasses.replace(tiny_arch(), num_classes=2))
    pixels = Preprocessing(image_size=16, resize_to=16, mean=(99, 99, 99), std=(50, 50, 50))
    write_folder(
        root / "model",
        TrainedModel(model, tiny_variables(model), pixels, ("cat", "dog"), {"format": "test"}),
    )
    for number, name in enumerate(("cat", "dog")):
        (root / "photos" / "val" / name).mkdir(parents=True)
        for i in range(3):
            picture = Image.new("RGB", (20, 30), (200 * number, 40 * i, 9))
            picture.save(root / "photos" / "val" / name / f"{i}.png")
    (root / "brücke.jpg").write_text("<html>not found</html>")
    return root


def test_predict_gives_one_json_object_a_photo_and_names_what_is_none(folder, capsys):
    arguments = [str(folder / "photos"), str(folder / "brücke.jpg"), "--json"]
    assert main(["predict", str(folder / "model"), *arguments]) == 1
    output, _ = capsys.readouterr()
    assert "brücke.jpg" in output  # and not \\u00fc
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["file"].rsplit("/", 1)[1] for line in lines] == 2 * [
        "0.png", "1.png", "2.png",
    ] + ["brücke.jpg"]  # fmt: skip
    assert "not an image" in lines[-1]["error"]
    for line in lines[:-1]:
        assert {guess["label"] for guess in line["top"]} == {"cat", "dog"}
        assert sum(guess["probability"] for guess in line["top"]) == pytest.approx(1)


def test_predict_leaves_out_what_is_no_image_by_its_name(folder, tmp_path, capsys):
    shutil.copytree(folder / "photos" / "val" / "cat", tmp_path / "photos")
    (tmp_path / "photos" / "Thumbs.db").write_bytes(b"")
    assert main(["predict", str(folder / "model"), str(tmp_path / "photos"), "--json"]) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 3
    assert "skipped files: junk 1\n" in output.err
    for image in (tmp_path / "photos").glob("*.png"):
        image.unlink()
    assert main(["predict", str(folder / "model"), str(tmp_path / "photos")]) == 1
    assert f"{tmp_path / 'photos'}: " in capsys.readouterr().err


def test_ctrl_c_prints_one_line_and_skips_the_normal_exit():
    """Python's normal exit can crash while a program compiles."""
    stopping = """
import atexit
from gnet_jax.__main__ import console_script
from gnet_jax.cli import main
atexit.register(print, "the way out")
def stopped(_): raise KeyboardInterrupt
main._run = stopped
console_script()
"""
    done = subprocess.run([sys.executable, "-c", stopping], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gnet: interrupted\n")


def test_only_the_module_of_the_typed_command_is_imported():
    program = """
import sys
from gnet_jax.cli.main import main
try:
    main(["check_data", "--help"])
finally:
    print("\\n", *(name for name in sys.modules if name.startswith("gnet_jax.cli.")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    imported = done.stdout.splitlines()[-1].split()
    assert imported == ["gnet_jax.cli.output", "gnet_jax.cli.main", "gnet_jax.cli.data"]


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_the_help_has_a_line_for_each_command(arguments, code, capsys):
    assert main(arguments) == code
    printed = capsys.readouterr()
    lines = (printed.err if code else printed.out).splitlines()
    for name in COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    shown = [line.split()[0] for line in lines if line.startswith("  ")]
    assert shown[:5] == ["train", "predict", "evaluate", "export", "demo"]


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (3, 3)])
@pytest.mark.parametrize("arguments", [["curves", "run"], ["plan", "digits"], ["train", "digits"]])
def test_the_exit_code_of_a_command_is_that_of_gnet(monkeypatch, arguments, returned, code):
    def parsed(workdirs: Annotated[Positional[tuple[str, ...]], several("WORKDIR ...")]):
        seen.append(workdirs)
        return returned

    def unparsed(arguments):
        seen.append(tuple(arguments))
        return returned

    seen = []
    for command in (lab, "curves", parsed), (lab, "plan", unparsed), (train, "train", unparsed):
        monkeypatch.setattr(*command)
    if (arguments[0], returned) != ("train", None):  # which always returns a code
        assert main(arguments) == code
        assert seen == [tuple(arguments[1:])]


@pytest.mark.parametrize("arguments", [["nothing"], ["--nothing"], ["-v"], ["", "predict"]])
def test_what_is_not_a_command_has_exit_code_2(arguments, capsys):
    assert main(arguments) == 2
    assert "curves" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["curves"], ["curves", "--nothing"], ["plan", "--nothing"]])
def test_a_typo_in_an_option_has_exit_code_2(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2


def test_a_picture_is_refused_before_any_work(tmp_path):
    check_picture(tmp_path / "a.PNG")
    check_picture(Path("a.svg"))
    check_picture(tmp_path / "a.webp", PHOTOS)
    for out in (tmp_path / "a.webp", tmp_path / "a", tmp_path / "no" / "a.png"):
        with pytest.raises(UserError, match=str(out)):
            check_picture(out)


def test_an_output_may_not_be_an_input_or_in_one(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("b", "a/b"):
        (tmp_path / name).touch()
    check_not_input(tmp_path / "b", [tmp_path / "a", "https://b", "-"])
    check_not_input(tmp_path / "a" / "new", [tmp_path / "a"])
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    for out in ("b", "link", "a/b"):
        with pytest.raises(UserError, match=str(tmp_path / out)):
            check_not_input(tmp_path / out, [tmp_path / "b", str(tmp_path / "a")])


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gnet {gnet_jax.__version__}\n"


def test_predict_prints_bars_and_draws_maps_of_the_images_it_can_read(folder, capsys):
    photos = [str(folder / "photos" / "val" / name / "1.png") for name in ("cat", "dog")]
    photos.insert(1, str(folder / "brücke.jpg"))
    out = folder / "map.png"
    assert main(["predict", str(folder / "model"), *photos, "--cam", str(out), "--top", "1"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("%") == 2
    for file in (out, folder / "map-2.png"):
        with Image.open(file) as drawn:
            assert drawn.size == (448, 480)


@pytest.mark.parametrize(
    ("command", "lost"),
    [
        ("predict MODEL 1.png --cam 1.png", "1.png"),
        ("predict MODEL . --cam 1.png", "1.png"),
        ("predict MODEL folder:. --cam 1.png", "1.png"),
        ("predict MODEL 1.png 1-2.png --cam ../photos/1.png", "1.png"),
        ("predict MODEL other.png 1-2.png --cam 1.png", "1-2.png"),
        ("export MODEL MODEL/model.safetensors", "MODEL/model.safetensors"),
        ("export net.safetensors net.safetensors", "net.safetensors"),
    ],
)
def test_no_output_overwrites_an_input(folder, tmp_path, monkeypatch, capsys, command, lost):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    shutil.copytree(folder / "model", "MODEL")
    photo = (folder / "photos" / "val" / "cat" / "1.png").read_bytes()
    for name in ("1.png", "1-2.png", "other.png", "net.safetensors"):
        Path(name).write_bytes(photo)
    if "other" in command:
        Path("1.png").unlink()
    before = Path(lost).read_bytes()
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert Path(lost).name in error
    assert command.startswith("export MODEL") or "is an input" in error
    assert Path(lost).read_bytes() == before


def test_evaluate_counts_every_image(folder, capsys):
    arguments = [str(folder / "model"), "--data", f"folder:{folder / 'photos'}"]
    assert main(["evaluate", *arguments, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert (one["images"], one["crops"], one["models"], one["top5"]) == (6, 1, 1, None)
    assert one["images_per_sec"] > 0
    assert main(["evaluate", str(folder / "model"), *arguments, "--crops", "10", "--json"]) == 0
    two = json.loads(capsys.readouterr().out)
    assert (two["images"], two["crops"], two["models"]) == (6, 10, 2)
    assert main(["evaluate", *arguments, "--table"]) == 0
    assert "paper's top-5 error" in capsys.readouterr().out


def test_evaluate_writes_the_accuracy_of_one_model_into_its_card(folder, tmp_path, capsys):
    data = f"folder:{folder / 'photos'}"
    shutil.copytree(folder / "model", tmp_path / "a")
    shutil.copytree(folder / "model", tmp_path / "b")
    both = [str(tmp_path / "a"), str(tmp_path / "b")]
    before = (tmp_path / "b/README.md").read_bytes()
    assert main(["evaluate", *both, "--data", data]) == 0  # an ensemble has no card
    assert (tmp_path / "a/README.md").read_bytes() == before
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "a"), "--data", data, "--json"]) == 0
    out, error = capsys.readouterr()
    result = json.loads(out)
    assert str(tmp_path / "a/README.md") in error
    assert main(["evaluate", *both, "--data", data, "--table"]) == 0
    card = (tmp_path / "a/README.md").read_text("utf-8")
    metrics = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][0]["metrics"]
    found = {metric["name"]: metric["value"] for metric in metrics}
    assert found["top-1"] == result["top1"]
    assert set(found) == {"top-1", "top-1, 10 crops", "top-1, 144 crops"}
    assert (tmp_path / "b/README.md").read_bytes() == before
    assert read_folder(tmp_path / "a").class_names == ("cat", "dog")

    (tmp_path / "a/README.md").write_text("---\n: {\n---\n")
    assert main(["evaluate", str(tmp_path / "a"), "--data", data]) == 2
    out, error = capsys.readouterr()
    assert "top-1" in out  # the result of the long work is not lost
    assert "header" in error


def test_the_card_names_the_split_that_was_opened(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.copytree(folder / "photos" / "val", tmp_path / "photos" / "train")
    pixels = np.resize(np.arange(256, dtype=np.uint8), (2, 20, 20, 3))
    np.savez(tmp_path / "test.npz", x=pixels, y=[0, 1])
    for data in (f"npz:{tmp_path}", f"folder:{tmp_path / 'photos'}#holdout=2"):
        assert main(["evaluate", str(tmp_path / "model"), "--data", data]) == 0
    card = (tmp_path / "model/README.md").read_text("utf-8")
    results = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert [each["dataset"]["split"] for each in results[-2:]] == ["test", "holdout"]


def test_evaluate_matches_classes_by_name(folder, tmp_path, capsys):
    photos = folder / "photos" / "val"
    arguments = ["evaluate", str(folder / "model"), "--data", f"folder:{tmp_path}", "--json"]
    shutil.copytree(photos / "dog", tmp_path / "val" / "dog")
    assert main(arguments) == 0
    dogs = json.loads(capsys.readouterr().out)
    shutil.copytree(photos / "cat", tmp_path / "val" / "cat")
    assert main(arguments) == 0
    both = json.loads(capsys.readouterr().out)
    assert (dogs["images"], both["images"]) == (3, 6)
    assert main(["predict", str(folder / "model"), str(photos / "dog"), "--json"]) == 0
    found = [json.loads(line)["top"][0]["label"] for line in capsys.readouterr().out.splitlines()]
    assert dogs["top1_count"] == found.count("dog")
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "zebra")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "the class 'zebra'" in error
    assert "compiling" not in error


def test_evaluate_leaves_damaged_images_out_and_names_them(folder, tmp_path, capsys):
    shutil.copytree(folder / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "val" / "cat" / "1.png").write_text("<html>")
    arguments = ["evaluate", str(folder / "model"), "--data", f"folder:{tmp_path / 'photos'}"]
    assert main(arguments) == 2
    assert "cat/1.png: not an image" in capsys.readouterr().err
    for more in ([], ["--table"]):
        assert main([*arguments, *more, "--bad-limit", "0.2"]) == 0
        output = capsys.readouterr().out
        assert "1 corrupt image left out:\n  " in output
        assert "cat/1.png: not an image: the format is none of" in output
    assert main([*arguments, "--bad-limit", "0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 5
    assert found["damaged"][0]["name"].endswith("cat/1.png")


def test_evaluate_reads_the_split_and_crops_that_were_named(folder, tmp_path, capsys):
    shutil.copytree(folder / "photos" / "val", tmp_path / "test")
    (tmp_path / "test" / "dog" / "1.png").unlink()
    shutil.copytree(folder / "photos" / "val" / "cat", tmp_path / "val" / "cat")
    arguments = ["evaluate", str(folder / "model"), "--data", f"folder:{tmp_path}", "--json"]
    for split, images in (("test", 5), ("val", 3)):
        assert main([*arguments, "--split", split]) == 0
        assert json.loads(capsys.readouterr().out)["images"] == images


def test_evaluate_names_ten_damaged_images_and_counts_the_rest(folder, tmp_path, capsys):
    shutil.copytree(folder / "photos", tmp_path / "photos")
    for i in range(12):
        (tmp_path / "photos" / "val" / "cat" / f"bad{i:02}.png").write_text("<html>")
    arguments = ["evaluate", str(folder / "model"), "--data", f"folder:{tmp_path / 'photos'}"]
    assert main([*arguments, "--bad-limit", "0.65"]) == 2  # 12 of 18; int(0.65 * 18) is 11
    capsys.readouterr()
    assert main([*arguments, "--bad-limit", "0.67", "--crops", "10"]) == 0
    output = capsys.readouterr().out
    assert "of 6 images (1 model, 10 crops, " in output
    assert "12 corrupt" in output
    assert [f"bad{i:02}.png" in output for i in range(12)] == 10 * [True] + 2 * [False]
    assert "2 more" in output


@pytest.mark.parametrize("top", [1, 2])
def test_predict_prints_as_many_classes_as_are_asked_for(folder, tmp_path, top, capsys):
    photo = str(shutil.copy(folder / "photos" / "val" / "cat" / "0.png", tmp_path / "ä.png"))
    assert main(["predict", str(folder / "model"), photo, "--top", str(top), "--json"]) == 0
    output = capsys.readouterr().out
    assert "ä.png" in output  # and not \\u00e4
    found = json.loads(output)["top"]
    assert [len(found), found[0]["probability"] >= 0.5] == [top, True]


@pytest.mark.parametrize(
    ("notes", "shown"), [({}, "newest"), ({"validation_top1": "0.9125"}, "91.25%")]
)
def test_the_step_that_was_loaded_of_a_workdir_is_printed(
    folder, monkeypatch, capsys, notes, shown
):
    stored = read_folder(folder / "model")
    source = {"step": "345"} | notes
    monkeypatch.setattr(
        "gnet_jax.inference.predict.load", lambda path: dataclasses.replace(stored, source=source)
    )
    photo = str(folder / "photos" / "val" / "cat" / "0.png")
    assert main(["predict", "runs/x", photo]) == 0
    error = capsys.readouterr().err
    assert "runs/x: step 345" in error
    assert shown in error


def test_convert_and_export_keep_the_model(folder, capsys):
    names = folder / "names.txt"
    names.write_text("tiger\nwolf\n")
    source, copy = str(folder / "model"), str(folder / "copy")
    assert main(["convert", source, copy, "--class-names", str(names)]) == 0
    assert f"wrote {copy}" in capsys.readouterr().out
    assert main(["convert", source, copy, "--class-names", str(names)]) == 0
    assert f"replaced the model in {copy}" in capsys.readouterr().out
    assert main(["predict", copy, str(folder / "photos"), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["top"][0]["label"] in ("tiger", "wolf")
    assert main(["export", copy, str(folder / "model.safetensors")]) == 0
    assert "0.0e+00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "/no/model", "x.jpg"], "/no/model does not exist"),
        (["predict", "MODEL"], "no photo given"),
        (["predict", "PHOTO", "MODEL"], "/model is a model, not an image"),
        (["inspect", "PHOTO", "MODEL"], "/model is a model, not an image"),
        (["predict", "PHOTO", "x.jpg"], "/0.png is an image, not a model"),
        (["predict", "MODEL-", "PHOTO"], "/model- does not exist (did you mean"),
        (["predict", "MODEL", "x.jpg", "--top", "0"], "--top is 0"),
        (["predict", "MODEL", "x.jpg", "--cam", "/no/x.png"], "folder /no not found"),
        (["predict", "MODEL", "x.jpg", "--cam", "x.pdf"], "use one of .png, .jpg"),
        (["evaluate", "MODEL", "--data", "digits"], "'0', '1', '2', '3', '4' and 5 more"),
        (["evaluate", "--data", "digits"], "no model to evaluate"),
        (["evaluate", "MODEL", "--data", "npz:/no/a.npz"], "/no/a.npz"),
        (["evaluate", "MODEL", "--data", "digits", "--batch-size", "0"], "--batch-size is 0"),
        (["evaluate", "MODEL", "--data", "digits", "--threads", "0"], "--threads is 0"),
        (["evaluate", "MODEL", "--data", "digits", "--bad-limit", "1"], "--bad-limit is 1.0"),
        (["evaluate", "MODEL", "--data", "digits", "--bad-limit", "-0.1"], "--bad-limit is -0.1"),
        (["evaluate", "MODEL", "--data", "digits", "--json", "--table"], "cannot be used together"),
        (["evaluate", "MODEL", "--data", "PHOTOS", "--step", "3"], "--step 3 needs a training"),
        (["evaluate", "MODEL", "--data", "digits", "--coordinator", "a"], "must be HOST:PORT"),
        (["convert", "/no/net.caffemodel", "x"], "/no/net.caffemodel"),
        (["predict", "~nobody-here/model", "x.jpg"], "~nobody-here/model does not exist"),
        (["evaluate", "~nobody-here/model", "--data", "PHOTOS"], "~nobody-here/model does not"),
        (["evaluate", "MODEL", "--data", "npz:~nobody-here/a.npz"], "~nobody-here/a.npz"),
        (["convert", "MODEL", "x", "--class-names", "~nobody-here/a.txt"], "~nobody-here/a.txt"),
        (["export", "MODEL", "~nobody-here/x.txt"], "the suffixes are .onnx"),
        (["convert", "MODEL", "/proc/x"], "/proc/x"),
        (["export", "MODEL", "x.txt"], "the suffixes are .onnx"),
        (["demo", "/no/model", "--port", "0"], "--port is 0"),
        (["demo", "/no/model", "--port", "65536"], "--port is 65536"),
        (["curves"], "at least one workdir"),
        (["curves", "run", "--out", "/no/x.png"], "folder /no not found"),
        (["summary", "--compare", "naive", "--picture", "/no/x.png"], "folder /no not found"),
        (["summary", "--compare", "naive", "--picture", "x.doc"], "use one of .png, .svg, .pdf"),
        (["summary", "--aux-after", "none"], "'none'"),
        (["check-data", "cifar10"], "'cifar10' is none of"),
        (["sumary"], "did you mean summary?"),
        (["curves", "/no/run"], "metrics.jsonl in /no/run"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(folder, arguments, message, capsys):
    model, photo = str(folder / "model"), str(folder / "photos" / "val" / "cat" / "0.png")
    given = {"MODEL": model, "MODEL-": f"{model}-", "PHOTO": photo}
    given["PHOTOS"] = f"folder:{folder / 'photos'}"
    assert main([given.get(each, each) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gnet: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_evaluation_whose_coordinator_is_unknown_exits_with_3(folder, capsys):
    others = ("--coordinator", "no.such.invalid:1", "--num-processes", "2", "--process-id", "1")
    assert main(["evaluate", str(folder / "model"), "--data", "digits", *others]) == 3
    assert "gnet: error: the coordinator's name 'no.such.invalid'" in capsys.readouterr().err


def test_a_misspelt_photo_is_one_sentence_and_nothing_is_compiled(folder, monkeypatch, capsys):
    monkeypatch.setattr("gnet_jax.inference.predict.Predictor.logits", None)
    photo = folder / "photos" / "val" / "cat" / "0.png"
    misspelt = str(photo).replace("photos", "photo")
    assert main(["predict", str(folder / "model"), misspelt]) == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert error.count("\n") == 1
    assert f"did you mean {photo}?" in error


def test_pillows_warnings_about_a_corrupt_image_are_not_shown(folder, tmp_path, capsys):
    encoded = io.BytesIO()
    Image.new("RGB", (20, 20)).save(encoded, "TIFF")
    one, nine = (struct.pack("<HHI", 259, 3, count) for count in (1, 9))  # the tag "compression"
    (tmp_path / "broken.tif").write_bytes(encoded.getvalue().replace(one, nine))
    assert main(["predict", str(folder / "model"), str(tmp_path / "broken.tif")]) == 1
    error = capsys.readouterr().err
    assert "broken.tif: " in error
    assert "Warning" not in error


def test_no_top_5_is_printed_if_there_are_at_most_five_classes(folder, capsys):
    assert main(["evaluate", str(folder / "model"), "--data", f"folder:{folder / 'photos'}"]) == 0
    output = capsys.readouterr().out
    assert "top-1" in output
    assert "top-5" not in output


def test_curves_of_runs_are_drawn_and_bad_places_named(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        log = MetricsFile(tmp_path / name / "metrics.jsonl")
        for step in (10, 20):
            train = {"train/main_loss": 1.0, "train/main_top1": 0.5}
            log.append(step, train | {"train/aux4a_loss": 2.0, "train/aux4a_top1": 0.25})
            log.append(step, {"val/loss": 1.5, "val/top1": 0.4})
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["curves", *runs, "--out", str(tmp_path / "curves.svg")]) == 0
    picture = (tmp_path / "curves.svg").read_text()
    assert picture.count("<svg") == 1
    assert main(["curves", *runs, "--out", str(tmp_path / "curves.docx")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits"], "--topology v5e:16x16"),
        (["digits", "--topology", "v9:2x2"], "'v9:2x2'.*v4, v5e"),
        (["digits", "--topology", "v5e:2x2", "v9:2x2"], "'v9:2x2'"),
        (["digits", "--topology", "v5e:4"], "'v5e:4' .*v5e:16x16"),
        (["digits", "--topology", "toy:8", "--batch", "0"], "--batch is 0; it must be at least 1"),
        (
            ["digits", "--topology", "toy:8", "--batch", "30"],
            "batch_size 30 does not divide evenly over 8",
        ),
        (["nowhere", "--topology", "v5e:2x2"], "unknown recipe nowhere"),
        (["cifar10", "--topology", "toy:8"], "--images and --classes"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_compiles(
    arguments, message, capsys, toy_machine, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert "compiling" not in error


CIFAR10 = ["cifar10", "--images", "50000", "--classes", "10"]


def test_a_plan_is_a_table_or_json_and_says_that_it_compiles(capsys, toy_machine):
    recipe = ["plan", *CIFAR10]
    even = [*recipe, "--eval-batch-size", "256", "--topology", "toy:8"]
    assert main([*even, "--json"]) == 0
    shown = capsys.readouterr()
    assert "compiling the training step for toy:8" in shown.err
    found = json.loads(shown.out)
    assert (found["topology"], found["batch_size"], found["bound"]) == ("toy:8", 128, "network")
    odd = ["--eval-batch-size", "250"]  # does not divide over 8; --batch replaces it
    assert main([*recipe, *odd, "--topology", "toy:8", "toy:8", "--batch", "64", "--json"]) == 0
    assert [each["batch_size"] for each in json.loads(capsys.readouterr().out)] == [64, 64]
    assert main([*even, "--epochs", "13"]) == 0
    shown = capsys.readouterr().out
    for text in ("cifar10: 13 epochs of 50,000 images", "toy:8", "3 all-reduce, 1.0 MiB", "yes"):
        assert text in shown


def test_a_plan_exits_with_1_if_any_topology_is_too_small(capsys, toy_machine, monkeypatch):
    cost = plan.compile_cost(None, None)
    costs = [cost, dataclasses.replace(cost, memory_bytes=2**40)]
    monkeypatch.setattr(plan, "compile_cost", lambda *_: costs.pop(0))
    arguments = [*CIFAR10, "--topology", "toy:8", "toy:8", "--batch", "128", "--json"]
    assert main(["plan", *arguments]) == 1
    assert [each["fits"] for each in json.loads(capsys.readouterr().out)] == [True, False]


LEDGER, VARIABLES = map(functools.cache, (plan.network_ledger, program.abstract_variables))


@pytest.fixture
def toy_machine(monkeypatch):
    """Eight virtual CPUs as a topology, and a cost without the compiling."""
    chip = Chip("toy", "tpu", 1e12, 2**30, 1e12, 1e6, 4, "https://example.org")
    cost = CompiledCost(
        argument_bytes=1000,
        temp_bytes=5000,
        memory_bytes=6100,
        flops=1e9,
        bytes=1e6,
        cycles=0,
        collectives=(Collective("all-reduce", 3, 2**20),),
        fusions=7,
        convolutions=5,
        donated=2,
        seconds=0.1,
    )
    known = topology.parse_topology
    monkeypatch.setattr(
        topology, "parse_topology", lambda text: None if text == "toy:8" else known(text)
    )
    monkeypatch.setattr(
        topology, "get_topology", lambda text: topology.Topology(text, chip, 2, jax.devices())
    )
    monkeypatch.setattr(plan, "compile_cost", lambda *_: cost)
    monkeypatch.setattr(plan, "network_ledger", LEDGER)
    monkeypatch.setattr(program, "abstract_variables", VARIABLES)


class ReachedError(UserError):
    """Ends a command where its options arrive."""


CONVERT = "convert.read.convert"


@pytest.mark.parametrize(
    ("command", "function", "expected"),
    [
        ("demo MODEL --port 7999", "inference.demo.serve", {1: 7999}),
        ("inspect MODEL PHOTO --class-index 1", "lab.look.inside.draw_inside", {4: 1}),
        ("inspect MODEL PHOTO --endpoint a b", "lab.look.inside.draw_inside", {3: ("a", "b")}),
        (
            "evaluate MODEL --data digits --threads 3 --batch-size 9 --bad-limit 0.5",
            "inference.evaluate.evaluate",
            {"threads": 3, "batch_size": 9, "bad_limit": 0.5, 2: 1},
        ),
        ("convert MODEL x", CONVERT, {"transform_input": None}),
        ("convert MODEL x --transform-input yes", CONVERT, {"transform_input": True}),
        ("convert MODEL x --transform-input no", CONVERT, {"transform_input": False}),
        (
            "prepare tfds:a --manual-dir m --data-dir d --threads 3 --subset --format tfrecord",
            "data.prepare.tfds.prepare",
            {
                0: "a",
                "manual_dir": Path("m"),
                "data_dir": Path("d"),
                "threads": 3,
                "subset": True,
                "file_format": "tfrecord",
            },
        ),
        (
            "prepare tfds:a --resize 9 --out o --threads 3 --format tfrecord",
            "data.prepare.pack.pack",
            {0: "tfds:a", 1: Path("o"), 2: 9, "threads": 3, "file_format": "tfrecord"},
        ),
        (
            "prepare hf:a/b --out o --image-column i --label-column l --class-names n "
            "--bad-limit 0.1",
            "data.prepare.pack.pack",
            {0: "hf:a/b", 1: Path("o"), 2: None, "options": ("i", "l", Path("n"), 0.1)},
        ),
        ("check-data digits --threads 3", "data.check.scan", {0: "digits", "threads": 3}),
        ("curves a b", "lab.sweeps.figures.draw_curves", {0: (Path("a"), Path("b"))}),
        ("report a --figures f", "lab.sweeps.report.write_report", {2: Path("f")}),
        ("report a", "lab.sweeps.report.write_report", {1: Path("a/report.html"), 2: None}),
    ],
)
def test_the_options_of_a_command_reach_the_function_that_does_the_work(
    folder, monkeypatch, capsys, command, function, expected
):
    def reached(*positional, **named):
        given = dict(enumerate(positional)) | named
        assert {name: given[name] for name in expected} == expected
        raise ReachedError("as expected")

    monkeypatch.setattr("gnet_jax.inference.demo.build", lambda *_: None)
    monkeypatch.setattr(f"gnet_jax.{function}", reached)
    names = {"MODEL": folder / "model", "PHOTO": folder / "photos" / "val" / "cat" / "0.png"}
    assert main([str(names.get(word, word)) for word in command.split()]) == 2
    assert "as expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "recipe"),
    [
        ("imagenet2012", "imagenet_modern"),
        ("cifar10", "cifar10"),
        ("imagenette/160px-v2", "imagenette"),
        ("mnist:3.0.1", "folder"),
    ],
)
def test_prepare_prints_the_command_that_trains_on_the_set(
    tmp_path, monkeypatch, capsys, source, recipe
):
    monkeypatch.chdir(tmp_path)
    done = Prepared(Path("d"), {"train": 1234, "test": 5}, {"junk": ["a", "b"]})
    monkeypatch.setattr("gnet_jax.data.prepare.tfds.prepare", lambda *_, **__: done)
    assert main(["prepare", f"tfds:{source}", "--data-dir", "a b"]) == 0
    printed = capsys.readouterr()
    assert "1,234 train" in printed.out
    folder = f"TFDS_DATA_DIR='{tmp_path}/a b'"
    assert f"{folder} gnet train {recipe} --data.source tfds:{source}\n" in printed.out
    assert "junk 2" in printed.err


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Path.is_file then returns False")
@pytest.mark.parametrize("command", ["predict {} photo.jpg", "train digits --init {}"])
def test_a_private_folder_is_one_sentence(command, private, tmp_path, capsys):
    arguments = command.format(private / "model").split()
    if arguments[0] == "train":
        arguments += ["--workdir", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"cannot access {private}/model" in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Path.is_file then returns False")
@pytest.mark.parametrize(
    "command", ["predict MODEL NAMES", "predict NAMES x", "train digits --init NAMES"]
)
def test_a_list_of_files_that_is_too_long_for_a_path_is_one_sentence(
    command, folder, tmp_path, capsys
):
    given = {"MODEL": str(folder / "model"), "NAMES": "1.jpg\n2.jpg\n" * 400}
    arguments = [given.get(each, each) for each in command.split()]
    if arguments[0] == "train":
        arguments += ["--workdir", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert r"error: cannot access 1.jpg\n2.jpg" in error
    assert "the path is too long" in error
    assert len(error) < 200


def test_training_is_not_ended_by_a_reader_that_leaves(monkeypatch):
    def train_on(_):
        raise BrokenPipeError

    monkeypatch.setattr(train, "train", train_on)
    with pytest.raises(BrokenPipeError):
        main(["train", "digits"])


def test_a_replay_is_printed_as_json_with_all_of_its_fields(monkeypatch, capsys):
    found = dataclasses.make_dataclass("Found", ["step", "metrics"])(7, {"loss": float("inf")})
    monkeypatch.setattr("gnet_jax.lab.look.replay.read_replay", lambda file: file)
    monkeypatch.setattr("gnet_jax.lab.look.replay.examine", lambda file: found)
    assert main(["replay", "replay-7.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"step": 7, "metrics": {"loss": None}}


def test_a_table_that_is_not_on_a_terminal_is_160_columns_wide(capsys):
    assert console().width == 160


def test_a_letter_that_the_terminal_lacks_is_escaped(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), "ascii"))
    set_up_process()
    for stream in (sys.stdout, sys.stderr):
        print("é", file=stream, flush=True)
        assert stream.buffer.getvalue() == b"\\xe9\n"


SWEEP = '''"""A title.

And <what> it is."""
from gnet_jax.config import Config, Sweep
configs = {name: Config(epochs=2, batch_size=8 * n) for n, name in enumerate("abcd", 1)}
get_sweep = lambda: Sweep(configs, seeds=3)
'''


def test_ablate_trains_its_shard_and_tells_failures_and_signals_by_the_exit_code(
    tmp_path, monkeypatch, capsys
):
    workdir = finished_sweep(tmp_path / "sweep")
    (tmp_path / "sweep.py").write_text(SWEEP)
    command = ["ablate", str(tmp_path / "sweep.py"), "--workdir", str(workdir)]
    trained = []

    def run_cells(cells, sweep, progress, *, retry_failed):
        trained.append(([f"{cell.name}{cell.seed}" for cell in cells], retry_failed))
        assert sweep.configs["c"].batch_size == 24

    monkeypatch.setattr(ablate, "check_configs", lambda sweep: None)
    monkeypatch.setattr(ablate, "relative_cost", lambda _: 1.0)
    monkeypatch.setattr(ablate, "run_cells", run_cells)
    assert main(command) == 1  # b2 has failed
    assert "b, seed 2" in capsys.readouterr().err.replace("'", "")
    for shard in ("0/2", "1/2"):
        assert main([*command, "--shard", shard, "--retry-failed"]) == 1
    (everything, retried), *shards = trained
    assert everything == [f"{name}{seed}" for name in "abcd" for seed in range(3)]
    assert retried is False
    assert sorted(shards[0][0] + shards[1][0]) == everything
    assert [again for _, again in shards] == [True, True]
    assert [len(cells) for cells, _ in shards] == [6, 6]
    good = (workdir / "b" / "seed-1" / "result.json").read_text()
    (workdir / "b" / "seed-2" / "result.json").write_text(good)
    assert main(command) == 0

    def stopped(*_, **__):
        raise ablate.StoppedError(signal.SIGTERM)

    monkeypatch.setattr(ablate, "run_cells", stopped)
    assert main(command) == 143


@pytest.mark.parametrize(
    ("error", "code"),
    [(start.HostsError("lost"), 3), (start.TrainingError("nan"), 1), (UserError("bad"), 2)],
)
def test_the_exit_code_of_training_tells_the_kind_of_error(monkeypatch, capsys, error, code):
    def fail(_):
        raise error

    monkeypatch.setattr(start, "start", fail)
    assert train.main(["digits"]) == code
    assert str(error) in capsys.readouterr().err


def test_an_error_of_one_host_reaches_the_others_within_30_seconds(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(train, "run", lambda *arguments: seen.append(arguments) or 2)
    for option, seconds in (([], 30), (["--start-timeout", "9"], 9)):
        arguments = ["nowhere", "--distributed", "on", *option]
        assert train.main(arguments, "gnet train") == 2
        error, launch, given, prog = seen.pop()
        assert "nowhere" in str(error)
        assert (launch.start_timeout, given, prog) == (seconds, arguments, "gnet train")
    assert train.main(["--no-such-option", "--distributed", "on"]) == 2
    assert isinstance(seen.pop()[0], UserError)
    with pytest.raises(SystemExit) as ended:
        train.main(["--help", "--distributed", "on"])
    assert ended.value.code == 0
    assert train.main(["nowhere"]) == 2
    assert not seen


@pytest.mark.parametrize("option", ["--supervise", "--supervise-preempted"])
def test_a_supervised_command_starts_itself_again_and_checks_the_config_first(
    option, monkeypatch, capsys
):
    class Supervisor:
        def __init__(self, command, checkpoints, launch, prog):
            assert command[0] == sys.executable
            assert checkpoints == Path("/w/checkpoints")

        def run(self):
            return 7

    monkeypatch.setattr("gnet_jax.training.hosts.supervise.Supervisor", Supervisor)
    arguments = ["digits", option, "--workdir", "/w"]
    assert train.main(arguments) == 7
    assert train.main([*arguments, "--optim.warmup-epochs", "99"]) == 2
    assert "warmup_epochs is 99" in capsys.readouterr().err
    monkeypatch.setenv(supervise.ACKNOWLEDGE, "1")  # in the process that the supervisor started
    monkeypatch.setattr("gnet_jax.training.hosts.supervise.end_with_supervisor", lambda: None)
    monkeypatch.setattr(train, "run", lambda *_: 5)
    assert train.main(arguments) == 5


def test_a_run_starts_from_its_weights_and_is_compared_with_the_other_hosts(monkeypatch, capsys):
    prepared, compared = [], []

    def prepare(*arguments):
        prepared.append(arguments)
        return types.SimpleNamespace(fingerprints=lambda: {"data": "x"})

    def compare(identity):
        compared.append(identity)
        raise start.TrainingError("they differ")

    for name in ("use_compilation_cache", "call_in_this_thread"):
        monkeypatch.setattr(f"gnet_jax.training.sharding.{name}", lambda: None)
    monkeypatch.setattr(
        "gnet_jax.convert.start.with_start", lambda config: (config, config.init and "weights")
    )
    monkeypatch.setattr(program, "prepare", prepare)
    monkeypatch.setattr(start, "identity", lambda run, fingerprints: fingerprints)
    monkeypatch.setattr(start, "compare", compare)
    assert train.main(["digits"]) == 1
    assert train.main(["digits", "--init", "models/a"]) == 1
    (alone, nothing), (started, weights) = prepared
    assert (alone.init, nothing) == (None, None)
    assert (started.init, weights) == ("models/a", "weights")
    assert compared == 2 * [{"data": "x"}]


def test_the_plan_of_a_run_gives_its_network_and_data(tmp_path, capsys):
    run = tiny_run(tmp_path)
    takeover = types.SimpleNamespace(
        fresh={"params/classifier/kernel": "other classes"}, loaded=["params/conv1/kernel"]
    )
    optim = dataclasses.replace(run.config.optim, freeze=("conv*", "x"))
    run = with_program(run, takeover=takeover)
    val = type("Val", (), {"split": "test", "left_out": {"junk": ["a"]}, "__len__": lambda _: 3})()
    changed = dataclasses.replace(run.config, optim=optim)
    run = dataclasses.replace(with_program(run, config=changed), val=val)
    train.print_plan(run, Path("w"))
    lines = capsys.readouterr().out.splitlines()
    plan = {line[:8].strip(): line[10:] for line in lines}
    costs = LEDGER(run.program.model, 16)
    assert f"{costs.params:,} parameters ({costs.params_with_aux:,} with" in plan["size"]
    assert f"{costs.macs / 10**6:,.1f} M multiply-adds" in plan["size"]
    assert "digits: 1,437 training and 3 validation images (test split)" in plan["data"]
    assert (plan["loaded"], plan["new"]) == ("conv1", "classifier (other classes)")
    assert plan["frozen"] == "conv*, x"
    assert "junk 1" in plan["skipped"]


def test_the_next_commands_have_a_path_unless_the_shell_finds_the_same_program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/v/bin/gnet", "train"])
    monkeypatch.setattr(shutil, "which", {"gnet": "/v/bin/gnet"}.get)
    assert train._typed("gnet train") == ("gnet", "gnet train")
    monkeypatch.setattr(shutil, "which", {"gnet": "/other/gnet"}.get)
    assert train._typed("gnet train")[0].endswith("../v/bin/gnet")
    monkeypatch.setattr(shutil, "which", {"python": sys.executable}.get)
    assert train._typed("train.py") == ("python -m gnet_jax", "python train.py")


def on_device(kind):
    """A program in float32 of 32 images on eight devices of this kind."""
    device = types.SimpleNamespace(device_kind=kind)
    mesh = types.SimpleNamespace(size=8, devices=types.SimpleNamespace(flat=[device]))
    return types.SimpleNamespace(mesh=mesh, config=Config(), model=None)


def test_a_step_is_compared_with_the_plan_on_a_chip_that_is_known(toy_machine, monkeypatch):
    monkeypatch.setattr(plan, "ledger_flops", lambda _: 1e9)
    monkeypatch.setattr(plan, "read_cost", lambda _: plan.compile_cost(None, None))
    assert train.peak_images_per_sec(on_device("TPU v5 lite")) == pytest.approx(197e3)
    assert train.peak_images_per_sec(on_device("cpu")) is None
    heads = {"perf/step_ms": 12.3, "perf/mfu": 0.25}
    result, steps = types.SimpleNamespace(heads=heads), types.SimpleNamespace(train=None)
    text = train.describe_step(result, steps, on_device("TPU v5 lite"))
    least = 2 * 2**20 * 7 / 8 / 200e9  # an all-reduce over the links
    assert "12.30 ms" in text
    assert "25.0%" in text
    assert f"{1000 * least:.2f} ms" in text
    assert "v5e (network)" in text
    assert train.describe_step(result, steps, on_device("cpu")) == ""
    unfinished = types.SimpleNamespace(heads={})  # no step was trained
    assert train.describe_step(unfinished, steps, on_device("TPU v5 lite")) == ""


def test_the_result_of_a_run_is_printed_with_each_number_in_its_place(capsys):
    result = Result(
        step=90,
        state=None,  # pyright: ignore[reportArgumentType]
        signal=None,
        val={"val/top1": 0.51, "val/top5": 0.72},
        heads={"train/main_loss": 2.0, "train/main_top1": 0.634, "train/aux4a_top1": 0.45},
        best=(60, 0.83),
        checkpoint=Path("w/checkpoints/90"),
        seconds=200,
        goodput={"training": 100.0},
    )
    shown = {"done in 3 min 20 s", "top-1 51.00%, top-5 72.00%", "top-1 83.00% at step 60"}
    shown |= {"main head: 63.4%", "aux4a head: 45.0%", "w/checkpoints/90"}
    train.print_result(result, Config(), Path("/w"), ["digits"], "train.py")
    printed = capsys.readouterr().out
    assert {text for text in shown if text in printed} == shown
    few = dataclasses.replace(result, val={"val/top1": 0.51})  # at most five classes
    train.print_result(few, Config(), Path("/w"), ["digits"], "train.py")
    assert "top-5" not in capsys.readouterr().out
    for change, text in (
        ({"heads": {}}, "all 90 steps"),
        ({"signal": 15}, "SIGTERM; step 90"),
        ({"signal": 15}, "train.py digits --seed 'a b'"),
    ):
        changed = dataclasses.replace(result, **change)
        train.print_result(changed, Config(), Path("/w"), ["digits", "--seed", "a b"], "train.py")
        assert text in capsys.readouterr().out
