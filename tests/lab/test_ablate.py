import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gnet_jax.cli.main import main
from gnet_jax.lab.sweeps import ablate
from gnet_jax.lab.sweeps.results import rows_of
from gnet_jax.lab.sweeps.sweep import cells_of, folder_of, read_sweep
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training import loop
from gnet_jax.training.program import prepare
from gnet_jax.training.workdir import locked
from tests.lab.sweeps import TINY_SWEEP
from tests.tiny import tiny_arch, tiny_config, with_program

ROOT = Path(__file__).parents[2]


def three_blocks(config, _):
    """`prepare`, with the network of three blocks."""
    model = GoogLeNet(tiny_arch(aux_after=config.model.aux_after))
    return with_program(prepare(config), model=model)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep as (cells, what was said, what was compiled): two seeds, and a misfit."""
    workdir, said = tmp_path_factory.mktemp("sweep"), []
    good = tiny_config(workdir, epochs=0.1)
    odd = dataclasses.replace(good, batch_size=30)
    cells = cells_of({"good": good}, 2, workdir) + cells_of({"odd": odd}, 1, workdir)
    patch = pytest.MonkeyPatch()
    patch.setattr(ablate, "prepare", three_blocks)
    compiled = []
    compile_step = loop.compile_train_step

    def counted(*arguments, **options):
        compiled.append("good")
        return compile_step(*arguments, **options)

    patch.setattr(loop, "compile_train_step", counted)
    ablate.run_cells(cells, said.append)
    yield cells, said, compiled
    patch.undo()


def test_each_run_leaves_its_result(swept):
    cells, _, _ = swept
    good = cells[0].result
    assert good["status"] == "done"
    assert (good["val_images"], good["step"]) == (360, 4)
    assert set(good["heads"]) == {"main", "aux4a"}
    assert good["top1"] == good["heads"]["main"]["top1"]
    assert good["memory_bytes"] > good["params_with_aux"] * 4
    lines = (cells[0].workdir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["val/top1"] == pytest.approx(good["top1"])
    assert json.loads(lines[-1])["val/loss"] == pytest.approx(
        good["heads"]["main"]["loss"], rel=1e-5
    )
    assert cells[1].result["heads"] != good["heads"]  # another seed


def test_what_cannot_train_is_reported_and_the_rest_goes_on(swept):
    cells, said, _ = swept
    error = cells[2].result["error"]
    assert error.startswith("ConfigError: batch_size 30 does not divide over 8 devices")
    assert sum(": failed, " in line for line in said) == 1
    assert sum(": top-1 " in line for line in said) == 2


def test_seeds_of_a_config_share_one_compilation(swept):
    _, _, compiled = swept
    assert compiled == ["good"]


def test_what_has_ended_is_not_run_again_and_failures_only_on_request(swept):
    cells, _, _ = swept
    said = []
    ablate.run_cells(cells, said.append)
    assert said == []
    ablate.run_cells(cells[-1:], said.append, retry_failed=True)
    assert [": failed, " in line for line in said] == [False, True]
    starts = json.loads((cells[0].workdir / "run.json").read_text())["starts"]
    assert len(starts) == 1


def test_a_run_that_another_process_has_is_left_to_it(swept, tmp_path):
    cells, _, _ = swept
    config = dataclasses.replace(cells[0].config, workdir=str(tmp_path / "run"))
    cell, said = dataclasses.replace(cells[0], config=config), []
    cell.workdir.mkdir()
    with locked(cell.workdir):
        ablate.run_cells([cell], said.append)
    assert "left to another process" in said[-1]
    assert cell.result is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no sweep is named"),
        (["nowhere"], "neither a file nor in configs/; there are ablate_heads, ablate_norm"),
        (["ablate_norm", "--shard", "2/2"], "--shard is 2/2; it must be i/n"),
        (["ablate_norm", "--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["ablate_norm", "--workdir", "/proc/no"], "cannot write to the workdir /proc/no"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert main(["ablate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def command(tmp_path, workdir, *more):
    (tmp_path / "tiny.py").write_text(TINY_SWEEP)
    flags = "--xla_backend_optimization_level=0"
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gnet_jax",
            "ablate",
            tmp_path / "tiny.py",
            "--workdir",
            workdir,
            *more,
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(workdir):
    """What every run came to, without the speeds and the folder."""
    return {
        (row.name, seed): row.failed.get(seed, "").replace(str(workdir), "WORKDIR")
        or {k: v for k, v in row.done[seed].items() if k != "images_per_sec"}
        for row in rows_of(read_sweep(workdir))
        for seed in row.workdirs
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nobody interrupted: (folder of its file, what it came to, what it printed)."""
    folder = tmp_path_factory.mktemp("whole")
    process = command(folder, folder / "sweep")
    printed, _ = process.communicate(timeout=1500)
    assert process.returncode == 1, printed  # one config fails
    return folder, outcome(folder / "sweep"), printed


@pytest.mark.long
@pytest.mark.slow
def test_a_config_that_cannot_train_does_not_keep_the_others_from_the_table(whole):
    _, found, printed = whole
    failed = {name for (name, _), value in found.items() if isinstance(value, str)}
    assert failed == {"nan", "large"}
    assert len(found) == 6
    assert "failed: nan, seed 1: TrainingError: step 1" in printed
    assert "failed: large, seed 0: ConfigError: a step of batch_size 268435456 needs " in printed
    assert "2 of 2" in printed


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_ends_with_the_same_table(whole):
    folder, expected, _ = whole
    workdir, kills, generator = folder / "killed", 0, random.Random()
    for _ in range(12):
        process = command(folder, workdir)
        try:
            process.communicate(timeout=generator.uniform(4, 14))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        break
    else:
        process = command(folder, workdir)
        process.communicate(timeout=1500)
    assert process.returncode == 1
    assert kills
    assert outcome(workdir) == expected


@pytest.mark.long
@pytest.mark.slow
def test_two_shards_at_once_give_the_whole_table_and_nothing_twice(whole):
    folder, expected, _ = whole
    workdir = folder / "sharded"
    shards = [command(folder, workdir, "--shard", f"{i}/2") for i in range(2)]
    for shard in shards:
        printed, _ = shard.communicate(timeout=1500)
        assert "runs of 3 configs" in printed
    assert outcome(workdir) == expected
    for name, seed in expected.keys() - {("large", 0), ("large", 1)}:  # these never begin
        record = json.loads((folder_of(workdir, name, seed) / "run.json").read_text())
        assert len(record["starts"]) == 1
