"""Windows of steps are traced, and the traces have every scope of the step."""

import dataclasses
import types
from unittest import mock

import jax
import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import AugmentConfig, Config, ConfigError, check, profile_windows
from gnet_jax.lab.cost.trace import read_profile
from gnet_jax.training.loop import train
from gnet_jax.training.observe import profile
from gnet_jax.training.observe.profile import Profiler, window_folder
from gnet_jax.training.program import prepare
from tests.tiny import tiny_config, tiny_run

SCOPES = {"augment", "stem", "inception_3a", "inception_4a", "inception_5a", "aux_4a", "head"}
SCOPES |= {"pool3", "pool4", "loss", "optimizer"}


@pytest.fixture
def metadata_in_key():
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    yield
    jax.config.update(name, before)


def test_a_trace_of_five_steps_has_all_scopes_and_gnet_profile_lists_them(
    tmp_path, metadata_in_key, capsys
):
    train(tiny_run(tmp_path, profile=("3:7",), eval_every_epochs=0.1), tmp_path)
    found = read_profile(tmp_path)
    assert (found.first, found.last, found.devices) == (3, 7, 8)
    assert found.scopes().keys() >= SCOPES
    assert {each.scope for each in found.operations if each.backward} >= {"stem", "inception_5a"}
    (file,) = window_folder(tmp_path, 3, 7).glob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert steps == [3, 4, 5, 6, 7]
    # An evaluation within the window is in the trace, but has another name.
    modules = {dict(event.stats).get("hlo_module") for event in events}
    assert modules >= {"jit_train_step", "jit_eval_step"}
    text = (file.parent / profile.PROGRAM).read_text()
    assert text.startswith("HloModule jit_train_step,")
    capsys.readouterr()
    assert main(["profile", str(tmp_path), "--figure", str(tmp_path / "scopes.png")]) == 0
    shown = capsys.readouterr().out
    assert [scope for scope in SCOPES if scope not in shown] == []
    assert found.operations[0].name in shown
    assert (tmp_path / "scopes.png").stat().st_size > 1000


@pytest.fixture
def traced(monkeypatch):
    """The steps at which a trace starts (+) and stops (-), without tracing."""
    calls, now = [], types.SimpleNamespace(step=0)
    fake = mock.Mock()
    fake.start_trace.side_effect = lambda *_, **__: calls.append(now.step)
    fake.stop_trace.side_effect = lambda: calls.append(-now.step)
    fake.StepTraceAnnotation.side_effect = lambda *_, **__: mock.MagicMock()
    monkeypatch.setattr(profile.jax, "profiler", fake)
    monkeypatch.setattr(Profiler, "_save", lambda *_: None)

    def run(config, start, steps, tmp_path, tell=print):
        with Profiler(config, tmp_path, start, tell) as profiler:
            for now.step in steps:
                profiler.begin(now.step, None)
                profiler.end(now.step, None, None)
        return calls

    return run


def test_every_window_after_the_start_is_traced(traced, tmp_path):
    config, told = Config(profile=("12:12", "2:3", "5:8")), []
    assert traced(config, 5, range(6, 20), tmp_path, told.append) == [12, -12]
    assert len(told) == 1  # of the window in which the run resumes
    assert "5 to 8" in told[0]


def test_a_trace_that_the_end_of_a_run_cuts_is_stopped_and_not_saved(traced, tmp_path):
    told = []
    assert traced(Config(profile=("2:9",)), 0, range(1, 5), tmp_path, told.append) == [2, -4]
    assert len(told) == 1


def test_only_the_first_host_traces_unless_all_are_asked(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(profile.jax, "process_index", lambda: 1)
    config = Config(profile=("2:3",))
    assert traced(config, 0, range(1, 5), tmp_path) == []
    every = dataclasses.replace(config, profile_hosts="all")
    assert traced(every, 0, range(1, 5), tmp_path) == [2, -3]


def test_a_trace_that_cannot_be_saved_is_a_warning(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(Profiler, "_save", mock.Mock(side_effect=OSError(28, "No space left")))
    told = []
    traced(Config(profile=("1:2",)), 0, range(1, 4), tmp_path, told.append)
    assert "No space left" in told[0]


def test_windows_are_sorted():
    config = Config(profile=("20:25", "3:3"))
    check(config)
    assert profile_windows(config) == [(3, 3), (20, 25)]


@pytest.mark.parametrize(
    "windows", [("110:100",), ("0:5",), ("5",), ("a:b",), ("-1:5",), ("1:5", "5:9"), ("7:9", "1:8")]
)
def test_a_window_that_is_no_range_or_overlaps_is_refused(windows):
    with pytest.raises(ConfigError, match=windows[0]):
        check(Config(profile=windows))


def test_a_window_beyond_the_last_step_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"step 10\b.* 9 steps"):
        prepare(tiny_config(tmp_path, profile=("9:10",)))


def test_a_window_with_images_of_two_sizes_is_refused(tmp_path):
    small = AugmentConfig(early_size=12, early_share=4 / 9)
    for window in ("3:4", "5:6"):
        prepare(tiny_config(tmp_path, profile=(window,), augment=small))
    with pytest.raises(ConfigError, match="window 3:5, but after step 4 the images are larger"):
        prepare(tiny_config(tmp_path, profile=("3:5",), augment=small))
