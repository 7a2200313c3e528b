import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import train
from gnet_jax.cli.train import print_plan
from gnet_jax.data.sources import open_source
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.checkpoints.verify import digest
from gnet_jax.training.program import prepare
from tests.tiny import tiny_run

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere", "digits"]),
        (["digit"], ["digit,", "did you mean digits"]),
        (["--epochs", "1e12"], ["epochs", "1e+12", "44,906,250,000,000", "2,147,483,648"]),
        (["--model.reduction-factor", "1e9"], ["reduction_factor", "GiB"]),
        (["--workdir", "/proc/no/run"], ["/proc/no/run"]),
        (["--batch-size", "30"], ["batch_size 30", "8 devices", "24 or 32"]),
        (["--batch-size", "100000"], ["batch_size", "100,000", "17,244", "1,437"]),
        (["--data.source", "nothing"], ["'nothing'"]),
        (["--data.image-size", "8"], ["data.image_size 8"]),
        (["--model.num-classes", "5"], ["model.num_classes", "5", "10 classes"]),
        (["--model.aux-after", "9z"], ["model.aux_after", "'9z'"]),
        (["--data.workers", "-1"], ["data.workers is -1", "from 0 to 256"]),
        (["--data.bad-limit", "1"], ["data.bad_limit is 1.0", "below 1"]),
        (["--optim.learning-rate", "0"], ["optim.learning_rate is 0.0", "above 0"]),
    ],
)
def test_a_mistake_is_one_line_with_the_value_and_exit_code_2(arguments, words, capsys, tmp_path):
    if "--workdir" not in arguments:
        arguments = [*arguments, "--workdir", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ")
    assert [word for word in words if word not in error] == []
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def arrays(tmp_path, y_train, **more):
    x_train = np.full((len(y_train), 16, 16), 7, np.uint8)
    x_train[:, 0] = 200
    np.savez(tmp_path / "a.npz", x_train=x_train, y_train=y_train, **more)
    return f"npz:{tmp_path / 'a.npz'}"


def photos(tmp_path, *names):
    """Folders, with a photo in those whose name does not end in a slash."""
    for number, name in enumerate(names):
        (tmp_path / name).mkdir(parents=True)
        if not name.endswith("/"):
            picture = Image.new("RGB", (20, 20), (number, 0, 0))
            picture.save(tmp_path / name / f"{number}.jpg")
    return f"folder:{tmp_path}"


VAL = {"x_val": np.arange(512, dtype=np.uint8).reshape(2, 16, 16)}
UNFIT = {
    "labels out of range": (lambda p: arrays(p, [0, 1], y_val=[0, 2], **VAL), "has label 2, but"),
    "a negative label": (lambda p: arrays(p, [0, -1], y_val=[0, 1], **VAL), "has label -1, but"),
    "an empty class": (lambda p: arrays(p, [0, 2], y_val=[0, 1], **VAL), "1 without an image (1)"),
    "one class only": (lambda p: arrays(p, [0, 0], y_val=[0, 0], **VAL), "1 class"),
    "a split missing": (lambda p: arrays(p, [0, 1]), "has no images of val or valid"),
    "a folder's empty class": (
        lambda p: photos(p, "train/a", "train/b/", "val/a"),
        "no image files",
    ),
    "a folder's one class": (lambda p: photos(p, "train/a", "val/a"), "in 1 class folder(s)"),
    "a folder's split": (lambda p: photos(p, "train/a", "train/b"), "/val not found"),
    "a folder's other classes": (
        lambda p: photos(p, "train/a", "train/b", "val/a", "val/c"),
        "the val split of folder:",
    ),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_unfit_data_are_one_sentence_before_compiling(fault, tmp_path, capsys):
    make, message = UNFIT[fault]
    workdir = tmp_path / "run"
    data = tmp_path / "data"
    data.mkdir()
    assert train.main(["--data.source", make(data), "--workdir", str(workdir)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", "labels", "digits has no image to train on"),
        ("val", "labels", "digits has no image to validate on"),
        ("train", "class_names", "digits has 1 class"),
    ],
)
def test_sources_that_are_empty_or_of_one_class_are_refused(
    split, change, message, tmp_path, capsys, monkeypatch
):
    def opened(spec, wanted):
        source = open_source(spec, wanted)
        if wanted == split:
            setattr(source, change, getattr(source, change)[: change == "class_names"])
        return source

    monkeypatch.setattr("gnet_jax.training.program.open_source", opened)
    assert train.main(["--workdir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--optim.learnig-rate", "1"], "--optim.learning-rate"),
        (["--model.variant", "papr"], "'paper', 'batch_norm'"),
        (["--epochs", "many"], "--epochs"),
    ],
)
def test_a_typo_gets_a_suggestion_and_exit_code_2(arguments, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert hint in output.out + output.err


def test_ctrl_c_outside_the_loop_says_where_it_goes_on_and_ends_without_pythons_way_out():
    """Where a program compiles meanwhile, Python's own way out may end in a crash."""
    stopping = """
import atexit, runpy, sys
from gnet_jax.config import command
atexit.register(print, "the way out")
def stopped(*_): raise KeyboardInterrupt
command.parse_command = stopped
sys.argv = ["train.py"]
runpy.run_path("train.py", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", stopping], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("train.py: interrupted; ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_before_the_plan_ends_nothing(tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        print_plan(tiny_run(tmp_path), tmp_path)


def test_a_typo_in_an_option_of_the_launch_is_told_once(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--start-timeout", "many"])
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert (output.out + output.err).count("Error parsing --start-timeout") == 1


def test_a_reader_that_leaves_in_the_middle_of_the_help_gets_no_traceback():
    code = "import train; raise SystemExit(train.main(['--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


def test_help_names_every_recipe_and_field(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("digits", "--workdir", "--model.aux-after", "--optim.averaging", "--data.source"):
        assert word in text


def start(workdir, *arguments):
    """`python train.py` on one device, as a user starts it; all tests share what it compiles."""
    programs = workdir.parents[1] / "programs"
    environment = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(programs)}
    return subprocess.Popen(
        [sys.executable, "train.py", "--workdir", str(workdir), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=600):
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def committed(workdir):
    """The newest committed step, 0 before the first."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def wait_for_checkpoint(process, workdir, after=0):
    """Return once a step after the given one is committed."""
    deadline = time.monotonic() + 300
    while committed(workdir) <= after:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def digest_of(workdir, *arguments):
    run = prepare(train.parse(["--workdir", str(workdir), *arguments]))
    with Checkpoints(workdir / "checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.latest is not None
        return digest(checkpoints.restore(checkpoints.latest, run.program.abstract_state()))


@pytest.mark.slow
def test_the_first_command_trains_to_97_per_cent_with_both_heads_learning(tmp_path):
    code, output = finish(start(tmp_path / "run"), 1100)
    assert code == 0, output
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val/count"] == 360
    assert lines[-1]["val/top1"] >= 0.97
    last_training = next(line for line in reversed(lines) if "train/loss" in line)
    assert last_training["train/aux4a_top1"] > 0.9
    assert last_training["train/aux4d_top1"] > 0.9
    for word in ("parameters", "multiply-adds", "compiling", "aux4a head", "checkpoint:", "next:"):
        assert word in output


SHORT = ("--epochs", "3", "--save-every-steps", "5")


@pytest.mark.long
@pytest.mark.slow
def test_worker_processes_end_with_a_killed_run_and_change_no_bits(tmp_path):
    code, output = finish(start(tmp_path / "whole", *SHORT))
    assert code == 0, output
    workdir = tmp_path / "killed"
    process = start(workdir, *SHORT, "--data.workers", "2")
    wait_for_checkpoint(process, workdir)
    # the workers, and what tracks their resources
    assert len(psutil.Process(process.pid).children()) >= 2
    process.kill()
    finish(process, 60)  # returns once nobody holds its output any more: no worker is left
    code, output = finish(start(workdir, *SHORT, "--data.workers", "3"))
    assert code == 0, output
    assert digest_of(workdir, *SHORT) == digest_of(tmp_path / "whole", *SHORT)


def damaged_folder(root, share):
    """200 + 40 JPEG files of two classes, of which `share` of the first are cut short."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 100), ("val", 20)):
        for number, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(100 * number, 100 * number + 99, (24, 24, 3), np.uint8)
                file = root / split / name / f"{i}.jpg"
                Image.fromarray(pixels).save(file)
                if split == "train" and i < share * count:
                    file.write_bytes(file.read_bytes()[:-300])
    return "--data.source", f"folder:{root}", "--model.width-multiplier", "0.125", "--epochs", "2"


@pytest.mark.long
@pytest.mark.slow
def test_a_folder_with_1_per_cent_of_damaged_files_trains_and_reports_them(tmp_path):
    arguments = damaged_folder(tmp_path / "photos", 0.01)
    code, output = finish(start(tmp_path / "run", *arguments, "--eval-batch-size", "40"))
    assert code == 0, output
    for name in ("cat/0.jpg", "dog/0.jpg"):
        lines = [line for line in output.splitlines() if name in line]
        assert len(lines) == 1
    listed = (tmp_path / "run/bad_records.jsonl").read_text().splitlines()
    assert len(listed) == 2


@pytest.mark.long
@pytest.mark.slow
def test_a_folder_with_10_per_cent_of_damaged_files_stops_with_the_list_after_saving(tmp_path):
    arguments = damaged_folder(tmp_path / "photos", 0.1)
    code, output = finish(start(tmp_path / "run", *arguments, "--eval-batch-size", "40"))
    assert code == 2, output
    assert "5 of 200 images" in output
    assert len([line for line in output.splitlines() if line.startswith("  /")]) == 5
    assert (tmp_path / "run/checkpoints").is_dir()
    arguments = (*arguments, "--eval-batch-size", "40", "--data.bad-limit", "0.2")
    code, output = finish(start(tmp_path / "run", *arguments))
    assert code == 0, output


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, number):
    workdir = tmp_path / "run"
    process = start(workdir, *SHORT)
    wait_for_checkpoint(process, workdir)
    process.send_signal(number)
    code, output = finish(process, 60)
    assert code == 128 + number, output
    assert f"stopped by {number.name}" in output
    assert f"--workdir {workdir}" in output  # the command that resumes
    code, output = finish(start(workdir, *SHORT))
    assert code == 0, output
    assert "resuming after step" in output
    code, output = finish(start(workdir, *SHORT))
    assert "already finished" in output
    code, output = finish(start(workdir, *SHORT, "--seed", "1"))
    assert code == 2
    assert "seed: 0 there, 1 now" in output
