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
from gnet_jax.config import Config, ConfigError, Sweep, change
from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.lab.sweeps import ablate
from gnet_jax.lab.sweeps.sweep import list_cells, open_sweep, plan_cells, read_sweep
from gnet_jax.model.googlenet import GoogLeNet, Outputs
from gnet_jax.training import sharding
from gnet_jax.training.program import model_of, prepare
from gnet_jax.training.workdir import BusyError, MetricsFile, locked, open_workdir
from tests.lab.sweeps import TINY_SWEEP
from tests.tiny import tiny_arch, tiny_config, with_program

ROOT = Path(__file__).parents[2]


THREE = tiny_arch()
MODEL = GoogLeNet(dataclasses.replace(THREE, widths={n: THREE.widths[n] for n in ("3a", "4a")}))


class Said(ablate.Progress):
    """Progress whose lines are kept in `lines` instead of being printed."""

    def __init__(self):
        super().__init__()
        self.lines, self.steps = [], []

    def say(self, text):
        self.lines.append(text)

    def step(self, *values):
        self.steps.append(values)


def two_blocks(config, _):
    """`prepare`, with a network of two blocks."""
    return with_program(prepare(config), model=MODEL)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep as (cells, configs, lines, compiled configs): two seeds, and a misfit."""
    workdir, said = tmp_path_factory.mktemp("sweep"), Said()
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
    ablate.run_cells(cells, Sweep(configs), said)
    yield cells, configs, said, compiled
    patch.undo()


def test_each_run_leaves_its_result(swept):
    cells = swept[0]
    good = cells[0].result
    assert good["status"] == "done"
    assert (good["val_images"], good["step"]) == (360, 4)
    assert set(good["heads"]) == {"main", "aux4a"}
    assert good["top1"] == good["heads"]["main"]["top1"] <= good["heads"]["main"]["top5"]
    assert good["chance"] == 0.1
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
    assert sums["count"].tolist() == [4, 4]
    assert sums["loss"] == pytest.approx(np.sum(totals, 0) - np.sum(chosen, 0), rel=1e-5)
    hits = [sum(logits[head, n].argmax() == label[n] for n in (0, 1, 3, 4)) for head in (0, 1)]
    assert sums["top1"].tolist() == hits
    assert sums["top5"].tolist() == [4, 4]  # there are three classes


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
    cells, _, progress, _ = swept
    said = progress.lines
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
    said = Said()
    ablate.run_cells(cells, Sweep(configs), said)
    assert said.lines == ["3 runs: 2 done, 1 failed, 0 to train"]
    ablate.run_cells(cells[-1:], Sweep(configs), said, retry_failed=True)
    assert said.lines[1] == "1 runs: 0 done, 1 to train"
    assert [": failed, " in line for line in said.lines[2:]] == [False, True]
    starts = json.loads((cells[0].workdir / "run.json").read_text())["starts"]
    assert len(starts) == 1


class Bench:
    """Stands for `ablate.Bench`; `trained` has the (config, seed) of every run."""

    trained: list = []  # noqa: RUF012

    def __init__(self, config):
        self.config = config

    def run(self, cell, request, on_report):
        self.trained.append((self.config, cell.seed))
        if cell.seed == 3:
            raise BusyError("busy")
        if cell.seed == 4:
            raise RuntimeError("first line\nsecond line")
        if cell.seed == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        on_report(25, 100, 30.0)
        rate = self.config.optim.learning_rate
        result = {"status": "done", "top1": 1 - abs(rate - 0.2), "images_per_sec": 7.0}
        return result | {"val_images": 100}


@pytest.fixture
def trained(monkeypatch):
    """The (config, seed) of the runs that `Bench` trains in this test."""
    monkeypatch.setattr(ablate, "Bench", Bench)
    monkeypatch.setattr(ablate, "relative_cost", lambda config: config.epochs)
    monkeypatch.setattr(Bench, "trained", [])
    return Bench.trained


def test_runs_train_in_order_past_those_that_ended_failed_or_are_busy(tmp_path, trained):
    config, said = Config(), Said()
    sweep = Sweep({"a": config})
    cells = list_cells(tmp_path, {"a": 0}, 6)
    for seed, status in ((0, "done"), (2, "failed")):
        cells[seed].workdir.mkdir(parents=True)
        result = {"status": status} | {"failed": {"error": "nan"}, "done": {"top1": 0.5}}[status]
        (cells[seed].workdir / "result.json").write_text(json.dumps(result))
    ablate.run_cells(cells, sweep, said)
    assert trained == [(config, seed) for seed in (1, 3, 4, 5)]
    found = [cell.result and cell.result["status"] for cell in cells]
    assert found == ["done", "done", "failed", None, "failed", "done"]
    assert cells[4].result["error"] == "RuntimeError: first line"
    assert said.lines[0] == "6 runs: 1 done, 1 failed, 4 to train"
    starts = [line.split()[0] for line in said.lines[1:]]
    assert starts == sorted(2 * ["2/6", "4/6", "5/6", "6/6"])  # a line at the start and at the end
    trained.clear()
    ablate.run_cells(cells, sweep, said, retry_failed=True)
    assert [seed for _, seed in trained] == [2, 3, 4]


def test_the_progress_line_has_the_run_its_step_and_both_remaining_times(
    tmp_path, trained, monkeypatch, capsys
):
    configs = {"a": Config(epochs=2), "b": Config(epochs=6)}
    cells = list_cells(tmp_path, dict.fromkeys(configs, 0), 2)
    said = Said()
    ablate.run_cells(cells, Sweep(configs), said)
    # While the first run of "a" trains, 2 + 6 + 6 epochs follow, which is 7 times its own epochs.
    assert said.steps[0] == ("1/4 a, seed 0", 7, 25, 100, 30.0)
    assert [values[1] for values in said.steps] == [7, 6, 1, 0]
    monkeypatch.setattr(ablate, "QUIET_SECONDS", 0.0)
    ablate.Progress().step(*said.steps[0])
    # 75 steps take 30 s, so 100 steps take 40 s, and the seven others 280 s.
    line = "1/4 a, seed 0: step 25/100, ETA 30 s, of the sweep 5 min 10 s\n"
    assert capsys.readouterr().out == line
    monkeypatch.setattr(ablate, "QUIET_SECONDS", 60.0)
    ablate.Progress().step(*said.steps[0])
    assert capsys.readouterr().out == ""


def test_runs_train_with_the_learning_rate_that_was_best_on_held_out_images(tmp_path, trained):
    configs = {"a": Config(), "b": Config(epochs=3)}
    rates = (0.1, 0.2, 0.9)
    sweep = Sweep(configs, seeds=2, learning_rates=rates, families={"b": "a"})
    (cells,) = plan_cells(tmp_path, sweep)
    ablate.run_cells(cells, sweep, Said())
    tried = [(c.optim.learning_rate, c.data.source) for c, _ in trained[:3]]
    assert tried == [(rate, "digits#holdout=10%") for rate in rates]
    own = [(c.epochs, c.optim.learning_rate, c.data.source, seed) for c, seed in trained[3:]]
    e = Config().epochs
    assert own == [(epochs, 0.2, "digits", seed) for epochs in (e, 3) for seed in (0, 1)]


def test_runs_whose_learning_rate_cannot_be_tuned_fail(tmp_path, trained):
    sweep = Sweep({"a": Config(seed=4)}, seeds=1, learning_rates=(0.1, 0.2))
    (cells,) = plan_cells(tmp_path, sweep)  # seed 4 fails
    ablate.run_cells(cells, sweep, Said())
    assert "tuning runs of a failed" in cells[-1].result["error"]


def test_seeds_of_a_config_never_train_with_different_tuned_rates(tmp_path, trained):
    sweep = Sweep({"a": Config()}, seeds=2, learning_rates=(0.1, 0.2))
    (cells,) = plan_cells(tmp_path, sweep)
    ablate.run_cells(cells[:3], sweep, Said())  # the tuning runs and seed 0, with 0.2
    (cells[2].workdir / "config.json").write_text('{"optim.learning_rate": 0.2}')
    (cells[0].workdir / "result.json").write_text('{"status": "done", "top1": 1.0}')
    ablate.run_cells(cells, sweep, Said())
    assert "seed-0 was trained with 0.2" in cells[3].result["error"]


def test_a_retried_tuning_run_never_changes_the_rate_that_runs_have_used(tmp_path, trained):
    sweep = Sweep({"a": Config()}, seeds=1, learning_rates=(0.1, 0.2, 0.9))
    open_sweep(tmp_path, sweep, "title")
    (cells,) = plan_cells(tmp_path, sweep)
    for cell in cells[1:3]:
        cell.workdir.mkdir(parents=True)
        (cell.workdir / "result.json").write_text('{"status": "failed", "error": "full disk"}')
    ablate.run_cells(cells, sweep, Said())
    (cells[3].workdir / "config.json").write_text('{"optim.learning_rate": 0.1}')
    ablate.run_cells(cells, sweep, Said(), retry_failed=True)
    assert "seed-0 was trained with 0.1" in cells[1].result["error"]
    assert cells[2].result["status"] == "done"  # worse than 0.1
    assert read_sweep(tmp_path).configs["a"]["optim.learning_rate"] == 0.1


def test_a_finished_run_that_has_lost_its_log_has_no_throughput(tmp_path):
    assert np.isnan(ablate.images_per_sec(tmp_path))


def test_a_signal_ends_the_sweep_before_the_next_run(tmp_path, trained, capfd):
    cells = list_cells(tmp_path, {"a": 9}, 2)
    with pytest.raises(ablate.StoppedError) as stopped:
        ablate.run_cells(cells, Sweep({"a": Config()}), Said())
    assert stopped.value.args == (signal.SIGTERM,)
    assert [seed for _, seed in trained] == [9]
    assert cells[0].result["status"] == "done"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_one_config_at_a_time_stays_prepared(tmp_path, trained, monkeypatch):
    prepared = []
    monkeypatch.setattr(
        ablate, "Bench", lambda config: [prepared.append(config.epochs), Bench(config)][1]
    )
    configs = {"a": Config(epochs=1), "b": Config(epochs=2)}
    cells = [list_cells(tmp_path / str(n), {name: 0}, 1)[0] for n, name in enumerate("aaba")]
    ablate.run_cells(cells, Sweep(configs), Said())
    assert prepared == [1, 2, 1]


def test_every_config_with_a_mistake_is_named_before_any_file_is_written(tmp_path, capsys):
    text = """
from gnet_jax.config import *
BASE = Config(data=DataConfig(image_size=16, resize_to=16), model=ModelConfig(stem="small"))
def get_sweep():
    return Sweep({
        "good": BASE,
        "small": change(BASE, {"data.image_size": 4}),
        "layer": change(BASE, {"optim.freeze": ("conv9",)}),
    })
"""
    (tmp_path / "s.py").write_text(text)
    assert main(["ablate", str(tmp_path / "s.py"), "--workdir", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    assert "config 'small': data.image_size 4" in error
    assert "config 'layer': " in error
    assert "good" not in error
    assert not (tmp_path / "w").exists()


def test_a_config_that_cannot_be_tuned_is_named_too(tmp_path):
    config = tiny_config(tmp_path)
    config = change(config, {"data.source": "digits#train=40", "batch_size": 8})
    ablate.check_configs(Sweep({"a": config}))
    with pytest.raises(ConfigError, match=r"config .a.: batch_size is 8, more"):
        ablate.check_configs(Sweep({"a": config}, learning_rates=(0.1,)))


@pytest.mark.parametrize(
    ("run", "suffix", "rates"), [("seed-0", "", ()), ("tune-0.1", "#holdout=10%", (0.1,))]
)
def test_a_sweep_whose_runs_were_trained_with_other_data_is_refused(tmp_path, run, suffix, rates):
    config, workdir = tiny_config(tmp_path), tmp_path / "a" / run
    own = change(config, {"data.source": f"digits{suffix}", "workdir": str(workdir)})
    open_workdir(own, prepare(own).fingerprints())

    def check(source):
        changed = change(config, {"data.source": source})
        ablate.check_configs(Sweep({"a": changed}, learning_rates=rates))

    check("digits#train=400")  # nothing was trained
    (workdir / "result.json").write_text('{"status": "done", "top1": 0.5}')
    with pytest.raises(ConfigError, match=rf"config .a.: .*digits#train=400.*{run} .*train split"):
        check("digits#train=400")
    check("digits#train=1437")  # the same images


def test_heads_are_averaged_over_all_batches_of_the_configs_validation(monkeypatch):
    config = tiny_config("", eval_batch_size=6)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, bad_limit=0.25))
    asked = []
    monkeypatch.setattr(ablate, "eval_batches", lambda source, **o: asked.append((source, o)))
    monkeypatch.setattr(ablate, "put_batches", lambda _, *where: [(n, *where) for n in (1, 2)])
    monkeypatch.setattr(ablate, "BadRecords", lambda *arguments: arguments)
    monkeypatch.setattr(ablate, "head_names", lambda model: [model.name, "aux"])
    bench = ablate.Bench.__new__(ablate.Bench)

    def step(state, batch):
        assert (state, batch[1:]) == ("state", ("mesh", 6))
        sums = {"loss": np.array([6.0, 12.0]), "top1": np.array([3, 1]), "top5": np.array([6, 3])}
        return {"count": np.full(2, 4 * batch[0])} | sums

    monkeypatch.setattr(bench, "_head_step", step, raising=False)
    model = types.SimpleNamespace(name="main", arch=types.SimpleNamespace(num_classes=6))
    program = types.SimpleNamespace(model=model, mesh="mesh", eval_batch_size=6)
    run = types.SimpleNamespace(config=config, program=program, val="val")
    assert bench._evaluate_heads(run, "state") == (
        12,
        {
            "main": {"loss": 1.0, "top1": 0.5, "top5": 1.0},
            "aux": {"loss": 2.0, "top1": 2 / 12, "top5": 0.5},
        },
    )
    model.arch.num_classes = 5
    assert bench._evaluate_heads(run, "state")[1]["main"] == {"loss": 1.0, "top1": 0.5}
    d = config.data
    options = {"batch_size": 6, "preprocessing": d.preprocessing, "threads": d.threads}
    assert asked == 2 * [("val", options | {"bad": ("val", 0.25)})]


def test_a_run_that_another_process_trains_is_skipped(swept, tmp_path):
    cells, configs, _, _ = swept
    cell, said = dataclasses.replace(cells[0], workdir=tmp_path / "run"), Said()
    cell.workdir.mkdir()
    with locked(cell.workdir):
        ablate.run_cells([cell], Sweep(configs), said)
    assert ": skipped (another process" in said.lines[-1]
    assert cell.result is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no sweep is given"),
        (["nowhere"], "neither a file nor in configs/; there are ablate_block, ablate_training"),
        (["ablate_training", "--shard", "2/2"], "--shard is 2/2; it must be i/n"),
        (["ablate_training", "--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (
            ["ablate_training", "--data.source", "digits", "--workdir", "/proc/no"],
            "/proc/no: No such",
        ),
        (
            ["ablate_training", "--baseline", "lnr"],
            "no config 'lnr' in the sweep; did you mean lrn?",
        ),
        (["ablate_training", "--learning-rates", "0.1", "0"], "--learning-rates is (0.1, 0.0)"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(["ablate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_runs_show_a_difference_only_between_configs_that_differ(tmp_path, monkeypatch):
    model = GoogLeNet(dataclasses.replace(MODEL.arch, norm="batch_norm"))
    monkeypatch.setattr(ablate, "prepare", lambda c, _: with_program(prepare(c), model=model))
    base = change(tiny_config(tmp_path, epochs=1), {"optim.learning_rate": 1e-2})
    slow = change(base, {"optim.learning_rate": 1e-5})
    sweep = Sweep({"base": base, "same": base, "slow": slow}, seeds=5)
    open_sweep(tmp_path, sweep, "title")
    cells = [cell for group in plan_cells(tmp_path, sweep) for cell in group]
    ablate.run_cells(cells, sweep, Said())
    record = read_sweep(tmp_path)
    _, same, slow = (row.minus(record.baseline) for row in record.rows)
    assert (same.verdict, same.seeds) == ("not distinguishable", 5)
    assert slow.verdict == "lower"
    assert slow.mean < -0.05
    assert len({result["top1"] for result in record.baseline.done.values()}) > 1


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
        for row in read_sweep(workdir).rows
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
    assert "failed: large, seed 0: " in printed  # its batch or its step needs too much memory
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
        assert "3 configs and 2 seeds" in printed
    assert outcome(workdir) == expected
    for name, seed in expected.keys() - {("large", 0), ("large", 1)}:  # these never begin
        record = json.loads((workdir / name / f"seed-{seed}" / "run.json").read_text())
        assert len(record["starts"]) == 1
