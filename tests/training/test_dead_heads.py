import math

import jax
import jax.numpy as jnp
import pytest

from gnet_jax.config import OptimConfig, UserError
from gnet_jax.training import program as run_module
from gnet_jax.training.loop import CompiledSteps, train
from gnet_jax.training.observe.faults import DeadHeadGuard, default_patience
from tests.tiny import tiny_run

HEADS = ("main", "aux4a", "aux4d")
GUESS = math.log(1000)


def guard(warmup: int = 0) -> DeadHeadGuard:
    return DeadHeadGuard(HEADS, 1000, warmup=warmup, patience=200)


def losses(*values: float) -> dict[str, float]:
    return {f"{head}_loss": value for head, value in zip(HEADS, values, strict=True)}


def reported(watch: DeadHeadGuard, *rows: tuple[int, float, float, float]) -> list[int]:
    """Returns the steps at which a problem was returned."""
    return [step for step, *values in rows if watch.read(step, losses(*values)) is not None]


def test_a_main_head_that_guesses_while_an_auxiliary_one_learns_is_told_once():
    rows = [(step, GUESS + 0.01, GUESS - 0.5, GUESS) for step in range(50, 1000, 50)]
    assert reported(guard(), *rows) == [250]


def test_the_message_names_heads_losses_and_remedies():
    watch = guard()
    watch.read(50, losses(GUESS, GUESS, GUESS))
    said = watch.read(250, losses(GUESS, GUESS - 0.5, GUESS))
    assert said is not None
    for part in ("main head", "step 50", "aux4a", "6.908", "optim.learning_rate"):
        assert part in said


def test_heads_that_all_guess_are_told_only_past_the_warm_up():
    rows = [(step, GUESS, GUESS, GUESS) for step in range(50, 1500, 50)]
    assert reported(guard(), *rows) == [250]
    assert reported(guard(warmup=600), *rows) == [850]


def test_one_report_below_begins_the_count_anew():
    rows = [(step, GUESS, GUESS, GUESS) for step in range(50, 250, 50)]
    rows += [(250, GUESS - 0.03, GUESS, GUESS)]
    rows += [(step, GUESS, GUESS, GUESS) for step in range(300, 550, 50)]
    assert reported(guard(), *rows) == [500]


def test_a_head_that_dies_again_is_told_again():
    dead = [(step, GUESS, GUESS, GUESS) for step in range(50, 300, 50)]
    alive = [(300, 6.0, 6.0, 6.0)]
    again = [(step + 300, *rest) for step, *rest in dead]
    assert reported(guard(), *dead, *alive, *again) == [250, 550]


def test_a_main_head_that_waits_with_all_but_one_undecided_is_left_in_peace():
    # aux4a neither guesses nor has learned anything yet: it is on its way
    rows = [(step, GUESS, GUESS - 0.05, GUESS) for step in range(50, 1000, 50)]
    assert reported(guard(), *rows) == []


def test_a_loss_far_above_guessing_is_not_dead_but_something_else():
    assert reported(guard(), *[(step, 9.0, 9.0, 9.0) for step in range(50, 1000, 50)]) == []


@pytest.mark.parametrize(
    ("main", "dead"),
    [(GUESS + 0.019, True), (GUESS + 0.021, False), (GUESS - 0.019, True), (GUESS - 0.021, False)],
)
def test_a_loss_within_two_hundredths_of_guessing_is_dead(main, dead):
    rows = [(step, main, GUESS - 0.5, GUESS) for step in (50, 250)]
    assert reported(guard(), *rows) == ([250] if dead else [])


@pytest.mark.parametrize(("below", "learns"), [(0.09, False), (0.11, True)])
def test_a_head_a_tenth_below_guessing_learns(below, learns):
    rows = [(step, GUESS, GUESS - below, GUESS) for step in (50, 250)]
    assert reported(guard(), *rows) == ([250] if learns else [])


def test_patience_ends_exactly_at_its_last_step():
    for last, steps in ((249, []), (250, [250])):
        rows = [(step, GUESS, GUESS, GUESS) for step in (50, last)]
        assert reported(guard(), *rows) == steps


def test_a_dead_auxiliary_head_alone_is_not_reported():
    rows = [(step, GUESS - 0.5, GUESS, GUESS) for step in range(50, 1000, 50)]
    assert reported(guard(), *rows) == []


def test_of_several_dead_heads_the_message_names_those_that_learn():
    watch = guard()
    watch.read(50, losses(GUESS, GUESS, GUESS - 0.5))
    said = watch.read(250, losses(GUESS, GUESS, GUESS - 0.5))
    assert said is not None
    assert "aux4d" in said
    assert "aux4a" not in said


def test_heads_that_died_one_after_another_are_dead_since_the_last():
    watch = guard()
    watch.read(50, losses(GUESS, GUESS, 6.0))
    for step in (100, 250):
        assert watch.read(step, losses(GUESS, GUESS, GUESS - 0.05 * (step == 250))) is None
    watch.read(300, losses(GUESS, GUESS, GUESS))
    said = watch.read(500, losses(GUESS, GUESS, GUESS))
    assert said is not None
    assert "no head" in said
    assert "step 300" in said


def test_patience_is_an_epoch_within_limits():
    assert [default_patience(n) for n in (45, 390.6, 40037)] == [200, 391, 10_000]


GUESSING = {"epochs": 0.3, "eval_every_epochs": 9.0, "optim": OptimConfig(learning_rate=1e-12)}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    run = tiny_run(tmp_path_factory.mktemp("guessing"), **GUESSING)
    return CompiledSteps(run.program)


@pytest.fixture
def guessing_run(tmp_path, monkeypatch):
    """A run of 13 steps whose heads guess for ever: logits begin at zero and nothing learns."""
    drawn = run_module.init

    def silent(*arguments):
        variables = drawn(*arguments)

        def silence(path, value):
            return jnp.zeros_like(value) if "classifier" in jax.tree_util.keystr(path) else value

        return variables | {"params": jax.tree.map_with_path(silence, variables["params"])}

    def run(dead_heads):
        (tmp_path / dead_heads).mkdir()
        return tiny_run(tmp_path / dead_heads, dead_heads=dead_heads, **GUESSING)

    monkeypatch.setattr(run_module, "init", silent)
    monkeypatch.setattr("gnet_jax.training.loop.default_patience", lambda _: 10)
    return run


def test_a_run_stops_when_no_head_learns_and_the_config_asks_for_it(
    guessing_run, compiled, tmp_path, capfd
):
    with pytest.raises(UserError, match=r"step 12: .*saved") as raised:
        train(guessing_run("stop"), tmp_path / "stop", compiled)
    assert raised.value.exit_code == 2  # so --supervise does not restart it
    assert "warning: step 12" in capfd.readouterr().out
    assert (tmp_path / "stop/checkpoints/12").is_dir()


def test_a_run_only_says_so_by_default_and_nothing_when_told_to_ignore(
    guessing_run, compiled, tmp_path, capfd
):
    for choice, said in (("warn", 1), ("ignore", 0)):
        assert train(guessing_run(choice), tmp_path / choice, compiled).step == 13
        assert capfd.readouterr().out.count("no head has learned") == said
