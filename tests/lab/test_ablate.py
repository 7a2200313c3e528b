import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from gnet_jax.cli.main import main
from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.lab.sweeps import ablate
from gnet_jax.lab.sweeps.sweep import list_cells, read_rows, read_sweep
from gnet_jax.model.googlenet import GoogLeNet, Outputs
from gnet_jax.training import sharding
from gnet_jax.training.program import model_of, prepare
from gnet_jax.training.workdir import BusyError, MetricsFile, locked
from tests.lab.sweeps import TINY_SWEEP
from tests.tiny import tiny_arch, tiny_config, with_program

ROOT = Path(__file__).parents[2]


THREE = tiny_arch()
MODEL = GoogLeNet(dataclasses.replace(THREE, widths={n: THREE.widths[n] for n in ("3a", "4a")}))


def two_blocks(config, _):
    """`prepare`, with a network of two blocks."""
    return with_program(prepare(config), model=MODEL)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep as (cells, configs, lines, compiled configs): two seeds, and a misfit."""
    workdir, said = tmp_path_factory.mktemp("sweep"), []
    good = tiny_config(workdir, epochs=0.1)
    odd = dataclasses.replace(good, batch_size=30)
    configs = {"good": good, "odd": odd}
    cells = list_cells(workdir, {"good": 4}, 2) + list_cells(workdir, {"odd": 0}, 1)
    patch = pytest.MonkeyPatch()
    patch.setattr(ablate, "prepare", two_blocks)
    compiled = []
    compile_step = sharding.compile_train_step

    def counted(*arguments, **options):
        compiled.append("good")
        return compile_step(*arguments, **options)

    patch.setattr(sharding, "compile_train_step", counted)
    ablate.run_cells(cells, configs, said.append)
    yield cells, configs, said, compiled
    patch.undo()


def test_each_run_leaves_its_result(swept):
    cells = swept[0]
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
    seeds = [json.loads((cell.workdir / "config.json").read_text())["seed"] for cell in cells[:2]]
    assert seeds == [4, 5]


def test_the_costs_are_those_of_the_trained_network(swept):
    good = swept[0][0].result
    cost = network_ledger(MODEL, 16)
    assert good["macs"] == cost.macs < cost.macs_with_aux
    assert (good["params"], good["params_with_aux"]) == (cost.params, cost.params_with_aux)
    assert cost.params < cost.params_with_aux


def test_heads_are_evaluated_on_the_real_examples_with_averaged_parameters(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    label, mask = np.array([0, 2, 1, 2, 0]), np.array([True, True, False, True, True])
    label[2] = logits[0, 2].argmax()  # would be a hit

    def outputs(model, variables, images):
        assert (variables, images) == ("averaged", "prepared")
        return Outputs(logits[0], (logits[1],))

    monkeypatch.setattr(ablate, "every_head", outputs)
    monkeypatch.setattr(ablate, "preprocess", lambda images, preprocessing: "prepared")
    state = types.SimpleNamespace(average="averaged", params="raw", batch_stats="raw")
    batch = {"image": None, "label": label, "mask": mask}
    sums = ablate.head_sums(state, batch, model=None, preprocessing=None)
    chosen = [logits[:, n, label[n]] for n in (0, 1, 3, 4)]
    totals = [np.log(np.exp(logits[:, n]).sum(-1)) for n in (0, 1, 3, 4)]
    assert sums["count"] == 4
    assert sums["loss"] == pytest.approx(np.sum(totals, 0) - np.sum(chosen, 0), rel=1e-5)
    hits = [sum(logits[head, n].argmax() == label[n] for n in (0, 1, 3, 4)) for head in (0, 1)]
    assert sums["top1"].tolist() == hits


def test_throughput_is_the_median_of_the_logged_ones(tmp_path):
    log = MetricsFile(tmp_path / "metrics.jsonl")
    for step, speed in enumerate((100.0, 900.0, 110.0)):
        log.append(step, {"perf/images_per_sec": speed})
        log.append(step, {"val/top1": 0.5})
    assert ablate.images_per_sec(tmp_path) == 110


def test_shards_weigh_runs_by_multiply_adds_and_epochs(tmp_path):
    config = tiny_config(tmp_path, epochs=3)
    model = model_of(config, 10)
    assert ablate.relative_cost(config) == 3 * network_ledger(model, 16).macs_with_aux
    bad = dataclasses.replace(config.model, variant="nowhere")
    assert ablate.relative_cost(dataclasses.replace(config, model=bad)) == 0


def test_a_run_that_cannot_train_is_reported_and_the_others_train(swept):
    cells, _, said, _ = swept
    error = cells[2].result["error"]
    assert error.startswith("ConfigError: ")
    assert "batch_size 30" in error
    assert sum(": failed, " in line for line in said) == 1
    assert sum(": top-1 " in line for line in said) == 2


def test_seeds_of_a_config_share_one_compilation(swept):
    compiled = swept[-1]
    assert compiled == ["good"]


def test_runs_that_ended_are_skipped_and_failed_ones_retried_on_request(swept):
    cells, configs, _, _ = swept
    said = []
    ablate.run_cells(cells, configs, said.append)
    assert said == []
    ablate.run_cells(cells[-1:], configs, said.append, retry_failed=True)
    assert [": failed, " in line for line in said] == [False, True]
    starts = json.loads((cells[0].workdir / "run.json").read_text())["starts"]
    assert len(starts) == 1


def test_runs_train_in_order_past_those_that_ended_failed_or_are_busy(tmp_path, monkeypatch):
    trained, said = [], []

    class Bench:
        def __init__(self, config):
            self.config = config

        def run(self, cell):
            trained.append((self.config, cell.seed))
            if cell.seed == 3:
                raise BusyError("busy")
            if cell.seed == 4:
                raise RuntimeError("first line\nsecond line")
            return {"status": "done", "top1": 0.5, "images_per_sec": 7.0}

    monkeypatch.setattr(ablate, "Bench", Bench)
    cells = list_cells(tmp_path, {"a": 0}, 6)
    for seed, status in ((0, "done"), (2, "failed")):
        cells[seed].workdir.mkdir(parents=True)
        (cells[seed].workdir / "result.json").write_text(json.dumps({"status": status}))
    ablate.run_cells(cells, {"a": "config"}, said.append)
    assert trained == [("config", seed) for seed in (1, 3, 4, 5)]
    found = [cell.result and cell.result["status"] for cell in cells]
    assert found == ["done", "done", "failed", None, "failed", "done"]
    assert cells[4].result["error"] == "RuntimeError: first line"
    starts = [line.split()[0] for line in said]
    assert starts == sorted(2 * ["2/6", "4/6", "5/6", "6/6"])  # a line at the start and at the end
    trained.clear()
    ablate.run_cells(cells, {"a": "config"}, said.append, retry_failed=True)
    assert [seed for _, seed in trained] == [2, 3, 4]


def test_one_config_at_a_time_stays_prepared(tmp_path, monkeypatch):
    prepared = []

    class Bench:
        def __init__(self, config):
            prepared.append(config)

        def run(self, cell):
            return {"status": "done", "top1": 0.5, "images_per_sec": 7.0}

    monkeypatch.setattr(ablate, "Bench", Bench)
    cells = [list_cells(tmp_path / str(n), {name: 0}, 1)[0] for n, name in enumerate("aaba")]
    ablate.run_cells(cells, {"a": "A", "b": "B"}, [].append)
    assert prepared == ["A", "B", "A"]


def test_heads_are_averaged_over_all_batches_of_the_configs_validation(monkeypatch):
    config = tiny_config("", eval_batch_size=6)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, bad_limit=0.25))
    asked = []
    monkeypatch.setattr(ablate, "eval_batches", lambda source, **o: asked.append((source, o)))
    monkeypatch.setattr(ablate, "put_batches", lambda _, *where: [(n, *where) for n in (1, 2)])
    monkeypatch.setattr(ablate, "BadRecords", lambda *arguments: arguments)
    monkeypatch.setattr(ablate, "head_names", lambda model: [f"main of {model}", "aux"])
    bench = ablate.Bench.__new__(ablate.Bench)

    def step(state, batch):
        assert (state, batch[1:]) == ("state", ("mesh", 6))
        return {"count": 4 * batch[0], "loss": np.array([6.0, 12.0]), "top1": np.array([3, 1])}

    monkeypatch.setattr(bench, "_head_step", step, raising=False)
    program = types.SimpleNamespace(model="net", mesh="mesh", eval_batch_size=6)
    run = types.SimpleNamespace(config=config, program=program, val="val")
    assert bench._evaluate_heads(run, "state") == (
        12, {"main of net": {"loss": 1.0, "top1": 0.5}, "aux": {"loss": 2.0, "top1": 2 / 12}},
    )  # fmt: skip
    d = config.data
    options = {"batch_size": 6, "preprocessing": d.preprocessing, "threads": d.threads}
    assert asked == [("val", options | {"bad": ("val", 0.25)})]


def test_a_run_that_another_process_trains_is_skipped(swept, tmp_path):
    cells, configs, _, _ = swept
    cell, said = dataclasses.replace(cells[0], workdir=tmp_path / "run"), []
    cell.workdir.mkdir()
    with locked(cell.workdir):
        ablate.run_cells([cell], configs, said.append)
    assert ": skipped (another process" in said[-1]
    assert cell.result is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no sweep is given"),
        (["nowhere"], "neither a file nor in configs/; there are ablate_heads, ablate_norm"),
        (["ablate_norm", "--shard", "2/2"], "--shard is 2/2; it must be i/n"),
        (["ablate_norm", "--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["ablate_norm", "--workdir", "/proc/no"], "cannot write to the workdir /proc/no"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
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
        for row in read_rows(read_sweep(workdir))
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
        record = json.loads((workdir / name / f"seed-{seed}" / "run.json").read_text())
        assert len(record["starts"]) == 1
