"""The launch files follow their tools' formats, and their training command is one of train.py.

None of them can be run here. The scripts are run with stand-ins for gcloud, srun and scontrol.
"""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

import train
from gnet_jax.config import check
from tests.launch import schemas

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = ["tpu_vm.sh", "slurm.sbatch"]
VALUES = {"--coordinator": "10.0.0.2:8476", "--num-processes": "8", "--process-id": "3"}
VARIABLES = {"BUCKET": "bucket", "RUN": "run", "SHARED": "/shared", "WORKERS": "8", "THREADS": "12"}
FILES = [*SCRIPTS, "gke_jobset.yaml", "skypilot.yaml", "Dockerfile"]
# vCPUs of the machine that each file is for: ct5lp-hightpu-4t, a3-highgpu-8g, --cpus-per-task.
VCPUS = {"gke_jobset.yaml": 112, "tpu_vm.sh": 112, "skypilot.yaml": 208, "slurm.sbatch": 64}


def read(name):
    return yaml.safe_load((LAUNCH / name).read_text())


def commands(name):
    """The training commands of a file, as the words that train.py is given."""
    text = (LAUNCH / name).read_text().replace("\\\n", " ")
    if name == "Dockerfile":
        return [re.findall(r'"([^"]+)"', re.search(r"^CMD (.*)", text, re.MULTILINE)[1])]
    found = re.findall(r"^[^#\n]*python train\.py ([^|>&\n]*)", text, re.MULTILINE)
    assert found
    return [
        [
            VALUES.get(before) or re.sub(r"\$(\w+)", lambda m: VARIABLES.get(m[1], ""), word)
            for before, word in zip(["", *words], words, strict=False)
        ]
        for words in map(shlex.split, found)
    ]


def run_with(stand_ins, script, *arguments, folder, **variables):
    """Run a script of launch/ with these commands, by name, in place of the real ones."""
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | variables
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", FILES)
def test_every_training_command_is_one_that_train_takes(name):
    for arguments in commands(name):
        assert arguments[0] == "imagenet_pod"
        assert "--workdir" in arguments  # the same one again resumes
        check(train.parse(arguments))


@pytest.mark.parametrize("name", VCPUS)
def test_the_decoding_threads_fit_the_machine(name):
    for arguments in commands(name):
        data = train.parse(arguments).data
        assert VCPUS[name] / 2 < data.workers * data.threads <= VCPUS[name]
        assert data.decoder == "fast"


@pytest.mark.parametrize("name", ["gke_jobset.yaml", "tpu_vm.sh", "skypilot.yaml"])
def test_checkpoints_and_compiled_programs_are_in_the_bucket(name):
    text = (LAUNCH / name).read_text()
    for arguments in commands(name):
        assert train.parse(arguments).workdir.startswith("gs://")
    assert re.search(r"JAX_COMPILATION_CACHE_DIR(: |=|\n +value: )gs://[\w$-]+/xla\n", text)


def test_slurm_keeps_checkpoints_and_compiled_programs_in_the_shared_folder():
    text = (LAUNCH / "slurm.sbatch").read_text()
    assert [train.parse(each).workdir for each in commands("slurm.sbatch")] == [
        "/shared/runs/imagenet_pod"
    ]
    assert "export JAX_COMPILATION_CACHE_DIR=$SHARED/xla" in text


@pytest.mark.parametrize("name", [*FILES, "gke_spot_nodes.yaml"])
def test_every_file_says_that_it_was_not_run(name):
    head = (LAUNCH / name).read_text().replace("\n# ", " ")
    assert re.search(r"not been (run on hardware|built here)", head)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_bash(name):
    done = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("gke_jobset.yaml", schemas.JOBSET),
        ("gke_spot_nodes.yaml", schemas.NODE_SYSTEM),
        ("skypilot.yaml", schemas.SKYPILOT),
    ],
)
def test_a_file_follows_its_tools_format(name, schema):
    jsonschema.validate(read(name), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["file_mounts", "/data"], {"name": "your-bucket", "mode": "MOUNT"}),
        (["resources", "job_recovery"], {"recover_on_exit_codes": [300]}),
        (["resources", "spot"], True),
    ],
)
def test_the_format_of_skypilot_refuses_what_skypilot_does(path, value):
    task = read("skypilot.yaml")
    inner = task
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(task, schemas.SKYPILOT)


@pytest.fixture
def jobset():
    return read("gke_jobset.yaml")


@pytest.fixture
def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def test_the_jobset_asks_for_the_slice_that_it_names(job):
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    hosts = rows * columns // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == hosts


def test_the_jobset_has_the_slice_to_itself(jobset):
    annotations = jobset["metadata"]["annotations"]
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert annotations == {key: "cloud.google.com/gke-nodepool"}


def test_the_jobset_fails_on_exit_code_2_of_the_training_container_and_restarts_on_others(
    jobset, job
):
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy requires it
    policy = jobset["spec"]["failurePolicy"]
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert policy["maxRestarts"] > 0
    assert job["backoffLimit"] == 0  # any other failure of a pod goes to the JobSet


def test_the_jobset_reads_data_through_a_mount_without_the_default_limits(job):
    template = job["template"]
    assert template["metadata"]["annotations"] == {
        "gke-gcsfuse/volumes": "true",
        "gke-gcsfuse/cpu-limit": "0",
        "gke-gcsfuse/memory-limit": "0",
        "gke-gcsfuse/ephemeral-storage-limit": "0",
    }
    (volume,) = template["spec"]["volumes"]
    (container,) = template["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert mount["readOnly"]
    assert volume["csi"]["readOnly"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["TFDS_DATA_DIR"].startswith(f"{mount['mountPath']}/")


def test_the_command_for_logs_names_the_container_because_the_mount_is_another(job):
    (container,) = job["template"]["spec"]["containers"]
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    assert re.findall(r"kubectl logs -f -c (\w+)", text) == [container["name"]]


def test_spot_nodes_give_pods_most_of_the_time_that_the_jobset_grants(job):
    kubelet = read("gke_spot_nodes.yaml")["kubeletConfig"]
    total, critical = kubelet.values()
    assert total - critical > 15  # what GKE grants otherwise
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= total - critical


@pytest.mark.parametrize("command", schemas.XPK)
def test_the_commands_for_xpk_have_its_required_options_and_no_others(command, job):
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    text = re.sub(r"\\\n#\s*", "", text)
    (line,) = re.findall(rf"^#\s+xpk {command} (.*)", text, re.MULTILINE)
    words = shlex.split(line)
    options = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    required, optional = schemas.XPK[command]
    assert required <= options <= required | optional
    if command == "workload create":
        assert "--storage=gnet-data" in words  # the name that `storage attach` gives
        codes = next(each for each in words if each.startswith("--restart-on-exit-codes="))
        assert set(codes.partition("=")[2].split(",")) == {"1", "3"}  # 127 to 255 are xpk's default
    else:
        assert words[0] == "gnet-data"


def test_skypilot_restarts_after_a_lost_host_only(tmp_path):
    task = read("skypilot.yaml")
    recovery = task["resources"]["job_recovery"]
    assert recovery["max_restarts_on_errors"] == 0
    assert set(recovery["recover_on_exit_codes"]) == {3, 134}
    (mount,) = task["file_mounts"]
    assert task["envs"]["TFDS_DATA_DIR"].startswith(f"{mount}/")
    done = subprocess.run(["bash", "-n"], input=task["setup"] + task["run"], text=True)
    assert done.returncode == 0


def directives():
    """Slurm's options, from the lines that begin with #SBATCH."""
    lines = re.findall(r"^#SBATCH --(.*)", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_slurm_grants_the_memory_of_the_whole_node_and_time_to_save():
    options = directives()
    assert options["mem"] == "0"
    assert options["ntasks-per-node"] == "1"
    assert re.fullmatch(r"TERM@(\d+)", options["signal"])
    assert int(options["cpus-per-task"]) == VCPUS["slurm.sbatch"]


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (3, 0, True),
        (134, 0, True),
        (143, 0, True),
        (143, 20, False),
    ],
)
def test_slurm_requeues_after_a_signal_or_a_lost_node_and_not_forever(
    tmp_path, code, restarts, requeued
):
    stand_ins = {
        "scontrol": f'[ "$1" = show ] && echo node1 || echo "$@" >> {tmp_path}/calls',
        "srun": f"exit {code}",
    }
    job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_ID": "7"}
    done = run_with(
        stand_ins,
        "slurm.sbatch",
        folder=tmp_path,
        SLURM_SUBMIT_DIR=str(tmp_path),
        SLURM_RESTART_COUNT=str(restarts),
        **job,
    )
    assert done.returncode == code, done.stderr
    calls = tmp_path / "calls"
    assert (calls.read_text().split() if calls.exists() else []) == (
        ["requeue", "7"] if requeued else []
    )


def sent(action, *options, folder, **variables):
    """The command that tpu_vm.sh sends to the hosts, checked to be bash."""
    stand_ins = {"gcloud": f'printf "%s" "${{@: -1}}" > {folder}/sent'}
    done = run_with(stand_ins, "tpu_vm.sh", action, *options, folder=folder, **variables)
    assert done.returncode == 0, done.stderr
    text = (folder / "sent").read_text()
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    return text


def test_a_tpu_vm_installs_gcsfuse_before_it_mounts_the_data_read_only(tmp_path):
    text = sent("install", folder=tmp_path, BUCKET="mine")
    assert 0 < text.index("apt-get install -y -qq gcsfuse") < text.index("gcsfuse -o ro")
    assert "gcsfuse -o ro --implicit-dirs mine data" in text
    assert "apt gcsfuse-$(lsb_release -cs) main" in text  # the host's release, not this machine's


def test_a_tpu_vm_installs_the_wanted_repository_and_extras(tmp_path):
    mine = {"REPOSITORY": "https://example.com/mine", "EXTRAS": "tpu,fast,gcs,wandb"}
    text = sent("install", folder=tmp_path, **mine)
    change = "git -C gnet_jax remote set-url origin https://example.com/mine\n"
    assert 0 < text.index(change) < text.index("git -C gnet_jax pull")
    assert "git clone https://example.com/mine gnet_jax" in text
    assert "-e 'gnet_jax[tpu,fast,gcs,wandb]'" in text


def test_a_tpu_vm_is_a_spot_slice_unless_the_variable_is_empty(tmp_path):
    assert sent("create", folder=tmp_path) == "--spot"
    assert sent("create", folder=tmp_path, SPOT="", VERSION="v2-alpha-tpuv6e") == "v2-alpha-tpuv6e"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WANDB_API_KEY", "a'b c"),
        ("WANDB_MODE", "offline"),
        ("LIBTPU_INIT_ARGS", "--xla_a=true --xla_b=true"),
    ],
)
def test_flags_and_logins_reach_every_host_if_they_are_set(tmp_path, variable, value):
    text = sent("train", folder=tmp_path, **{variable: value})
    (line,) = re.findall(rf"export {variable}=.*", text)
    done = subprocess.run(
        ["bash", "-c", f'{line}\nprintf %s "${variable}"'], capture_output=True, text=True
    )
    assert done.stdout == value
    assert f"export {variable}" not in sent("train", folder=tmp_path, **{variable: ""})


@pytest.mark.parametrize(("checks", "code"), [(3, 0), (1000, 1)])
def test_stop_waits_until_the_run_has_ended_but_not_forever(tmp_path, checks, code):
    text = sent("stop", folder=tmp_path)
    calls = tmp_path / "calls"
    stand_ins = {
        "pkill": f"echo pkill $* >> {calls}",
        "pgrep": f"echo pgrep >> {calls}; [ $(wc -l < {calls}) -le {checks} ]",
        "sleep": ":",
    }
    (tmp_path / "stop.sh").write_text(text)
    done = run_with(stand_ins, tmp_path / "stop.sh", folder=tmp_path)
    assert done.returncode == code
    assert ("120 s" in done.stderr) == bool(code)
    first, *others = calls.read_text().splitlines()
    assert first.startswith("pkill -TERM")
    assert len(others) == min(checks, 120)


def test_options_after_train_reach_every_host(tmp_path):
    text = sent("train", "--epochs", "0.01", "--note", "a b", folder=tmp_path, RUN="trial")
    (line,) = re.findall(r"train\.py (.*?) >>", text)
    assert shlex.split(line)[-4:] == ["--epochs", "0.01", "--note", "a b"]
    assert "--workdir gs://your-bucket/runs/trial " in line
    assert "export JAX_COMPILATION_CACHE_DIR=gs://your-bucket/xla" in text


@pytest.mark.parametrize("file", ["launch/tpu_vm.sh", "docs/pods.md"])
def test_the_options_shown_for_a_tpu_vm_are_valid(file):
    text = (LAUNCH.parent / file).read_text()
    shown = re.findall(r"launch/tpu_vm\.sh train (--.*)", text)
    assert shown
    for options in shown:
        check(train.parse(["imagenet_pod", *shlex.split(options)]))


def test_a_tpu_vm_refuses_other_words(tmp_path):
    done = run_with({"gcloud": "exit 9"}, "tpu_vm.sh", "start", folder=tmp_path)
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.mark.parametrize("name", ["tpu_vm.sh", "slurm.sbatch", "skypilot.yaml", "Dockerfile"])
def test_the_extras_that_a_file_installs_exist(name):
    project = tomllib.loads((LAUNCH.parent / "pyproject.toml").read_text())["project"]
    text = (LAUNCH / name).read_text().replace("${EXTRA}", "tpu")
    for default in re.findall(r"EXTRAS:-([\w,]+)\}", text):
        text = text.replace("$EXTRAS", default)
    (extras,) = re.findall(r"""-e(?:ditable)? ['"](?:gnet_jax|\.)\[([\w,]+)\]""", text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_the_image_holds_every_file_that_it_copies():
    text = (LAUNCH / "Dockerfile").read_text()
    instructions = {line.split()[0] for line in text.splitlines() if line and line[0] != "#"}
    assert {"FROM", "COPY", "RUN", "ENTRYPOINT", "CMD"} <= instructions
    for line in re.findall(r"^COPY (.*)", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (LAUNCH.parent / source).exists(), source
