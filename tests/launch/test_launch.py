"""The launch files parse, and their training command is one that train.py takes.

None of them can be run here.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import train
from gnet_jax.config import check

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = ["tpu_vm.sh", "slurm.sbatch"]
VALUES = {"--coordinator": "10.0.0.2:8476", "--num-processes": "8", "--process-id": "3"}
FILES = [*SCRIPTS, "gke_jobset.yaml", "skypilot.yaml", "Dockerfile"]


def commands(name):
    """The training commands of a file, as the words that train.py is given."""
    text = (LAUNCH / name).read_text().replace("\\\n", " ")
    if name == "Dockerfile":
        return [re.findall(r'"([^"]+)"', re.search(r"^CMD (.*)", text, re.MULTILINE)[1])]
    found = re.findall(r"^[^#\n]*python train\.py ([^|>&\n]*)", text, re.MULTILINE)
    return [shlex.split(each) for each in found]


@pytest.mark.parametrize("name", FILES)
def test_every_training_command_is_one_that_train_takes(name):
    given = commands(name)
    assert given
    for arguments in given:
        assert arguments[0] == "imagenet_pod"
        assert "--workdir" in arguments  # the same one again goes on
        filled = [
            re.sub(r"\$\w+", VALUES.get(before, ""), word)
            for before, word in zip(["", *arguments], arguments, strict=False)
        ]
        check(train.parse(filled))


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_that_it_was_not_run(name):
    head = (LAUNCH / name).read_text().replace("\n# ", " ").split("\n\n")
    assert re.search(r"not been (run on hardware|built here)", " ".join(head[:3]))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_bash(name):
    done = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_jobset_asks_for_the_slice_that_it_names():
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (job["kind"], job["spec"]["failurePolicy"]["maxRestarts"]) == ("JobSet", 100)
    (replicated,) = job["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    hosts = rows * columns // container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == hosts
    (volume,) = pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert f"--workdir {mount['mountPath']}/" in container["args"][0]


def test_the_skypilot_task_mounts_what_it_writes_to():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["num_nodes"] >= 1
    assert task["resources"].keys() == {"accelerators", "use_spot"}
    (mount,) = task["file_mounts"]
    assert f"--workdir {mount}/" in task["run"]
    done = subprocess.run(["bash", "-n"], input=task["setup"] + task["run"], text=True)
    assert done.returncode == 0


def test_the_image_holds_every_file_that_it_copies():
    text = (LAUNCH / "Dockerfile").read_text()
    instructions = {line.split()[0] for line in text.splitlines() if line and line[0] != "#"}
    assert {"FROM", "COPY", "RUN", "ENTRYPOINT", "CMD"} <= instructions
    for line in re.findall(r"^COPY (.*)", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (LAUNCH.parent / source).exists(), source
