import errno

import numpy as np
import pytest

from gnet_jax.training.hosts.agree import TrainingError
from gnet_jax.training.observe.bad_steps import SkippedSteps
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.step import create_state
from tests.tiny import tiny_batch, tiny_run, tiny_variables


def test_a_full_disk_leaves_the_sentence_and_the_remedies_without_a_replay(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, max_bad_steps=1)
    state = create_state(tiny_variables(run.program.model), run.program.optimizer, 0)

    def full(file, **_):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    metrics = {"skipped": 1.0, "loss": np.nan, "grad_norm": np.nan}
    after = state.replace(step=state.step + 1)
    with Reporter(tmp_path, start_step=0, total_steps=9) as reporter:
        skipped = SkippedSteps(run, tmp_path, reporter, 0)
        with pytest.raises(
            TrainingError, match=r"step 1: the loss is nan .* lower optim"
        ) as raised:
            skipped.read(1, metrics, tiny_batch(32), after)
    sentence = str(raised.value)
    assert sentence.endswith(
        "There is no replay file, for it could not be written (No space left on device)"
    )
    assert "gnet replay" not in sentence
    assert not list(tmp_path.glob("replay-*"))
