"""Every command that README and docs show, run as it stands there, one after another.

They run in a folder that has what they name, in small: photos, CIFAR's files, weights of the
published shapes. What would train for hours is told to stop after its first step, as Ctrl-C would;
what cannot run in a test is listed in `NOT_RUN` with the reason, and skipped.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnet_jax.convert.torch_file import write_torch
from gnet_jax.convert.torchvision import to_torchvision
from gnet_jax.data.prepare.tfds import prepare
from gnet_jax.model.architecture import VARIANTS
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder.folder import flatten
from tests.convert.caffe_files import caffemodel_bytes, random_layers
from tests.convert.conftest import random_variables
from tests.data.ilsvrc_tars import train_images, write_tars
from tests.test_extending import FILES
from tests.test_readme import BLOCKS

ROOT = Path(__file__).parents[1]
SECONDS = 900  # for one command

NOT_RUN = {
    "make ": "CI runs it",
    "git clone": "tests have no network",
    "source .venv/bin/activate": "make creates it; tests run in their own environment",
    "curl": "tests have no network",
    "pip install": "make installs, and so does CI",
    "python3 -m venv PEERS": "it is the peers' environment, of several GB",
    "PEERS/": "it is the peers' environment, of several GB",
    "gnet prepare tfds:imagenet2012 --manual-dir": "it refuses anything but all of ImageNet; "
    "tests/data/test_prepare.py runs it on a part",
    "gnet prepare cifar10": "tests have no network; tests/data/test_archives.py has a server",
    "gnet prepare hf:": "tests have no network; tests/data/test_rows.py has a server of its own",
    "gnet prepare parquet:": "tests/data/test_rows.py runs it",
    "gnet prepare wds:": "tests/data/test_rows.py runs it",
    "gnet plan": "it compiles for accelerators for minutes; tests/pods runs it in small",
    "python train.py finetune_folder --data.source folder:PHOTOS --init caffe": "tests have no "
    "network; tests/convert/test_published.py has a server",
    "gnet predict models/googlenet https:": "tests have no network; "
    "tests/inference/test_images.py has a server of its own",
    "gnet convert inception_v1_2016_08_28.tar.gz": "tests have no network; "
    "tests/convert/test_tf_slim.py writes such files",
    "gnet convert inception5h.zip": "tests have no network; "
    "tests/convert/test_inception5h.py writes such files",
    "gnet convert googlenet-12.onnx": "tests have no network; "
    "tests/convert/test_caffe.py writes such files",
    "gnet predict caffe": "tests have no network; tests/convert/test_published.py has a server",
    "gnet download caffe": "tests have no network; tests/convert/test_published.py has a server",
    "gnet push": "tests have no Hub; tests/model_folder/test_hub.py has one of its own",
    "gnet predict hf:": "tests have no Hub; tests/model_folder/test_hub.py has one of its own",
    "hf auth login": "it asks for an account",
    "wandb login": "it asks for an account",
    "gnet export models/googlenet googlenet.tflite": "it needs LiteRT's converter; "
    "tests/convert/test_export.py has it",
    **dict.fromkeys(
        ("gcloud ", "NUMBER=$(gcloud", "launch/", "RUN=trial launch/", "docker ", "kubectl "),
        "it needs a Google Cloud project; tests/launch runs the scripts with stand-ins",
    ),
    "export ": "it only sets variables for the commands after it",
    "gnet profile": "it needs a run with a trace; tests/training/test_profile.py makes one",
    "xprof": "it serves pages until it is stopped, and needs the extra [profile]",
    "gnet replay": "it needs a run that failed; tests/lab/test_replay.py makes one",
    **dict.fromkeys(
        ("gnet visualize", "gnet dream", "gnet attribute", "gnet top-images", "gnet compare"),
        "it takes minutes; tests/lab/test_look.py runs it on a small network",
    ),
    "gnet report runs/widths": "it needs finished runs; tests/lab/test_look.py has them",
    "python benchmarks/": "it takes minutes; tests/test_benchmarks.py runs them in small",
}
# What goes on for long is stopped once its output has this.
STOP = {
    "python train.py": r"compiling",
    "gnet ablate": r"1/\d+ .*: top-1",
    "gnet demo": r"http://127\.0\.0\.1",
}
TO_THE_END = ("--help", "--diagnose")  # diagnosed is the hundredth step


def commands() -> list[tuple[str, ...]]:
    """Lines as they stand there; those that must run at the same time together."""
    found: list[tuple[str, ...]] = []
    for _, header, text in BLOCKS:
        if header.split(" ")[0] not in ("", "bash"):
            continue
        for line in text.replace("\\\n", "").splitlines():
            if "--process-id 1" in line:
                found[-1] += (line,)
            else:
                found.append((line,))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A clone's files, and beside them everything that the commands name."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("gnet_jax", "configs", "docs", "train.py"):
        (root / name).symlink_to(ROOT / name)
    (root / "bin").mkdir()
    for name, arguments in (("python", ""), ("gnet", "-m gnet_jax")):
        script = root / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        script.chmod(0o755)

    generator = np.random.default_rng(0)
    for split, each in (("train", 20), ("val", 5), ("test", 5)):
        for folder in (
            "PHOTOS/{}/cat",
            "PHOTOS/{}/dog",
            "imagenet/{}/n01440764",
            "imagenet/{}/n15075141",
        ):
            inside = root / folder.format(split)
            inside.mkdir(parents=True)
            for number in range(each):
                photo(generator).save(inside / f"{number}.jpg")
    (root / "holiday").mkdir()
    (root / "imagenette160").symlink_to("imagenet")
    for file in ("photo.jpg", "holiday/beach.jpg"):
        photo(generator).save(root / file)
    for split, count in (("train", 800), ("test", 100)):
        np.savez(
            root / f"CIFAR_{split}.npz",
            images=generator.integers(0, 256, (count, 32, 32, 3), np.uint8),
            labels=np.arange(count) % 10,
        )

    for name, text in FILES.items():
        (root / name).write_text(text)

    layers = random_layers(VARIANTS["paper"])
    (root / "bvlc_googlenet.caffemodel").write_bytes(caffemodel_bytes(layers))
    network = GoogLeNet(VARIANTS["torchvision"])
    variables = flatten(random_variables(network, 224))
    write_torch(root / "googlenet-1378be20.pth", to_torchvision(network.arch, variables))
    (root / "models").mkdir()
    for name in "abc":
        (root / "models" / name).symlink_to("googlenet")
    write_tars(root / "DOWNLOADS", train_images(70))
    prepare(
        "imagenet2012",
        data_dir=root / "tfds",
        manual_dir=root / "DOWNLOADS",
        file_format="array_record",
        subset=True,
    )
    begin(root, "python train.py --epochs 1").wait(SECONDS)
    return root


def photo(generator: np.random.Generator) -> Image.Image:
    """Smooth colours."""
    small = generator.integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(small).resize((320, 256), Image.Resampling.BICUBIC)


def begin(root: Path, command: str, number: int = 0) -> subprocess.Popen:
    """The command in a shell, its output in a file."""
    environment = os.environ | {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compile time is test time
        "JAX_COMPILATION_CACHE_DIR": str(root / "programs"),
        "TFDS_DATA_DIR": "tfds",
    }
    with open(root / f"output-{number}.txt", "w") as output:
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_at(line: str) -> str | None:
    """What is waited for before the command is told to stop; None where it ends by itself."""
    if any(word in line for word in TO_THE_END):
        return None
    return next((text for command, text in STOP.items() if command in line), None)


@pytest.mark.slow
@pytest.mark.walkthrough
@pytest.mark.parametrize("lines", commands(), ids=lambda lines: lines[0].split("  ")[0])
def test_every_command_runs_as_it_stands(lines, place):
    for beginning, reason in NOT_RUN.items():
        if lines[0].startswith(beginning):
            pytest.skip(reason)
    if lines[0].startswith("gnet demo") and importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    processes = [begin(place, line, number) for number, line in enumerate(lines)]
    wanted = stop_at(lines[0])
    deadline = time.monotonic() + SECONDS
    stopped = False
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline, output_of(place, lines)
        if wanted and not stopped and re.search(wanted, output_of(place, lines[:1])):
            os.killpg(processes[0].pid, signal.SIGTERM)
            stopped = True
        time.sleep(0.1)
    codes = {process.returncode for process in processes}
    # Between two runs of a sweep, and in a demo, the signal itself ends the process.
    allowed = {0, 128 + signal.SIGTERM, -signal.SIGTERM} if wanted else {0}
    assert codes <= allowed, output_of(place, lines)


def output_of(place: Path, lines: tuple[str, ...]) -> str:
    """What the command's processes have printed."""
    return "\n".join((place / f"output-{n}.txt").read_text() for n in range(len(lines)))
