import csv
import json
import re
from pathlib import Path

import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import Config, flatten
from gnet_jax.lab.sweeps.runs import describe_differences, list_runs, name_runs
from gnet_jax.training.workdir import MetricsFile
from tests.lab.sweeps import finished_sweep

DOCS = Path(__file__).parents[2] / "docs" / "ablations.md"


def plain_run(workdir, *, step=5, total=10, code=("0.1.0 aaaaaaaa11111111",), **fields):
    """The workdir of a run that trained to `step`, with one start for each version of the code."""
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(flatten(Config()) | fields))
    starts = [
        {
            "step": 0,
            "reached": step,
            "total_steps": total,
            "seconds": {"training": 60.0, "saving": 5.0},
            "seconds_at_save": {},
            "code": version,
        }
        for version in code
    ]
    (workdir / "run.json").write_text(json.dumps({"starts": starts}))
    metrics = MetricsFile(workdir / "metrics.jsonl")
    for number, top1 in enumerate((0.1, 1 / 3, 0.25), 1):
        metrics.append(number, {"val/top1": top1})
    return workdir


def listed(capsys, *arguments):
    """The cells of the table that the command prints, by the name of the run."""
    assert main(["runs", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    rows = {}
    for line in printed.splitlines():
        if line.startswith("│"):
            name, *cells = (cell.strip() for cell in line.split("│")[1:-1])
            if name:
                rows[name] = last = cells
            else:  # the row is folded
                last[:] = [f"{one} {more}".strip() for one, more in zip(last, cells, strict=True)]
    return rows, printed


def test_runs_are_listed_in_natural_order_with_what_differs(tmp_path, capsys):
    for name, seed in (("run-10", 1), ("run-9", 0), ("deep/er/run", 0)):
        plain_run(tmp_path / name, seed=seed, **{"optim.learning_rate": seed / 10})
    rows, _ = listed(capsys, tmp_path)
    assert list(rows) == ["deep/er/run", "run-9", "run-10"]
    assert [cells[0] for cells in rows.values()] == ["", "", "seed=1, learning_rate=0.1"]
    assert rows["run-9"][1:5] == ["5 of 10", "25.00%", "33.33%", "1 min 5 s"]
    assert rows["run-9"][5:] == ["0.1.0 aaaaaaaa", "unfinished"]


def test_an_empty_list_is_told_from_a_field_that_is_not_set(tmp_path, capsys):
    for name, heads in (("none", []), ("unset", None), ("one", ["4a"])):
        plain_run(tmp_path / name, **{"model.aux_after": heads})
    rows, _ = listed(capsys, tmp_path)
    found = {name: cells[0] for name, cells in rows.items()}
    assert found == {"none": "aux_after=none", "unset": "aux_after=unset", "one": "aux_after=[4a]"}


def test_every_run_of_a_sweep_is_listed_and_a_failed_one_with_its_reason(tmp_path, capsys):
    finished_sweep(tmp_path)
    (tmp_path / "c" / "seed-1").mkdir()
    (tmp_path / "c" / "seed-1" / "result.json").write_text('{"status": "failed", "error": "OOM"}')
    rows, _ = listed(capsys, tmp_path)
    assert list(rows) == [f"{name}/seed-{seed}" for name in "abcd" for seed in range(3)]
    assert rows["a/seed-0"][:2] == ["batch_size=8", "10 of 10"]
    states = {name: cells[-1] for name, cells in rows.items()}
    assert states.pop("b/seed-2") == "failed: TrainingError: step 2: the loss is nan"
    assert states.pop("c/seed-1") == "failed: OOM"
    assert set(states.values()) == {"finished"}


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", '{"seed": ', "config.json is corrupt"),
        ("config.json", None, "config.json missing"),
        ("run.json", "[1]", "run.json is corrupt"),
        ("run.json", '{"starts": 3}', "run.json is corrupt"),
        ("run.json", '{"starts": [{"seconds": 3}]}', "run.json is corrupt"),
        ("run.json", '{"starts": [{}]}', "unfinished"),
        ("run.json", '{"starts": [{"reached": 3}]}', "number of steps not recorded"),
        ("run.json", '{"starts": [{"reached": 3, "total_steps": 3}]}', "finished"),
        ("run.json", None, "run.json missing"),
    ],
)
def test_a_run_that_cannot_be_read_is_listed_with_the_reason(
    tmp_path, capsys, file, content, reason
):
    plain_run(tmp_path / "good")
    bad = plain_run(tmp_path / "bad") / file
    bad.unlink() if content is None else bad.write_text(content)
    rows, _ = listed(capsys, tmp_path)
    assert list(rows) == ["bad", "good"]
    assert rows["bad"][-1].startswith(reason)
    assert rows["bad"][2] == rows["good"][2] == "25.00%"
    assert rows["good"][-1] == "unfinished"


def test_an_unreadable_log_is_a_reason_too(tmp_path, capsys, monkeypatch):
    plain_run(tmp_path / "run")

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self.path))

    monkeypatch.setattr(MetricsFile, "read", refuse)
    (run,) = list_runs([tmp_path])
    assert "Permission denied: 'metrics.jsonl'" in run.status


def test_other_versions_of_the_code_are_marked(tmp_path, capsys):
    usual, other = "0.1.0 aaaaaaaa11111111", "0.1.0 bbbbbbbb22222222"
    for name, code in {"a": [usual], "b": [usual], "c": [other], "d": [other, usual]}.items():
        plain_run(tmp_path / name, code=code)
    rows, printed = listed(capsys, tmp_path)
    shown = {name: cells[5] for name, cells in rows.items()}
    marked = {"c": "0.1.0 bbbbbbbb *", "d": "0.1.0 aaaaaaaa *"}
    assert shown == {"a": "0.1.0 aaaaaaaa", "b": "0.1.0 aaaaaaaa"} | marked
    assert "* another version" in printed
    assert "another version" not in listed(capsys, tmp_path / "a")[1]


def test_several_folders_and_links_name_every_run_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/b", "more/a"):
        plain_run(Path(name))
    Path("runs/loop").symlink_to(tmp_path / "runs")
    Path("runs/linked").symlink_to(tmp_path / "more")
    assert list(listed(capsys)[0]) == ["a", "b", "linked/a"]  # in the folder runs
    rows, _ = listed(capsys, "more", "runs", "runs/b")
    assert list(rows) == ["more/a", "runs/a", "runs/b"]
    assert list(listed(capsys, "runs/a")[0]) == ["runs/a"]


def test_the_csv_has_every_logged_number_unrounded(tmp_path, capsys):
    workdir = plain_run(tmp_path / "run, 1", seed=7)
    MetricsFile(workdir / "metrics.jsonl").append(4, {"train/loss": float("nan"), "n": 3})
    MetricsFile(workdir / "diagnostics.jsonl").append(2, {"grad_norm/conv1": 1e-30})
    out = tmp_path / "m.csv"
    _, printed = listed(capsys, tmp_path, "--out", out)
    with out.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["run", "seed", "step", "source", "metric", "value"]
    assert f"6 lines to {out}" in printed
    logged = [(1, "val/top1", "0.1"), (2, "val/top1", str(1 / 3)), (3, "val/top1", "0.25")]
    logged += [(4, "train/loss", "nan"), (4, "n", "3")]
    expected = [["run, 1", "7", str(step), "metrics", *rest] for step, *rest in logged]
    assert lines == [*expected, ["run, 1", "7", "2", "diagnostics", "grad_norm/conv1", "1e-30"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "run, 1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "cannot read nowhere"),
        (["empty"], "no run found in empty"),
        (["runs", "--out", "m.txt"], "use one of .csv, not '.txt'"),
        (["runs", "--out", "no/m.csv"], "no not found"),
        (["runs", "--out", "folder.csv"], "cannot write folder.csv: Is a directory"),
    ],
)
def test_what_cannot_be_read_or_written_is_named(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    plain_run(Path("runs/a"))
    for name in ("empty", "folder.csv"):
        Path(name).mkdir()
    assert main(["runs", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/seed-0", "runs/b/seed-0"], ["a/seed-0", "b/seed-0"]),
        (["runs/a/seed-0", "runs/a/seed-1"], ["seed-0", "seed-1"]),
        (["runs/a", "/elsewhere/b/"], ["a", "b"]),
        (["/x/y/s", "/z/y/s", "/t"], ["x/y/s", "z/y/s", "/t"]),
        (["a", "./a", "b/../a"], ["a"]),
        (["/"], ["/"]),
    ],
)
def test_runs_are_named_by_the_shortest_ends_that_differ(paths, names):
    assert list(name_runs([Path(path) for path in paths])) == names


def test_values_that_most_configs_share_are_left_out():
    rates = [{"optim.lr": rate, "workdir": str(rate), "n": None} for rate in (1, 1, 1, 2)]
    assert describe_differences(rates) == ["", "", "", "lr=2"]
    assert describe_differences(rates[2:]) == ["lr=1", "lr=2"]
    (_, text) = describe_differences([{"a": None}, {"a": "x" * 99 + "#train=5"}])
    assert text.endswith("x#train=5")  # the end of a data source tells more than its folder
    assert len(text) < 40


def test_the_pandas_code_in_the_docs_reads_the_csv(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    code = re.search(r"^```python no-run\n(import pandas.*?)^```", DOCS.read_text(), re.M | re.S)[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    finished_sweep(tmp_path / "runs")
    assert main(["runs", "runs", "--out", "metrics.csv"]) == 0
    found = {}
    exec(code, found)
    top1 = found["top1"]
    assert isinstance(top1, pandas.DataFrame)
    assert top1.loc[10, "a/seed-2"] == 0.05 * 10 + 0.01 * 2
    assert Path("top1.pdf").read_bytes().startswith(b"%PDF")
