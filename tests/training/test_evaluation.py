import types

import numpy as np
import pytest

from gnet_jax.training.hosts.start import TrainingError
from gnet_jax.training.hosts.stop import StopRequest, Vote
from gnet_jax.training.loop import evaluate
from tests.tiny import tiny_run


def evaluated(run, **sums):
    """The values of an evaluation of two batches whose sums are these."""
    found = {name: np.array(value) for name, value in sums.items()}
    bad_images = types.SimpleNamespace(val=None, report_left_out=lambda _: None)
    vote = Vote(run.program.mesh, StopRequest())
    eval_step = lambda *_: (found, np.int32(0))  # noqa: E731
    return evaluate(run, eval_step, 7, None, bad_images=bad_images, vote=vote)


def test_the_values_are_the_sums_of_all_batches_over_their_count(tmp_path):
    found = evaluated(tiny_run(tmp_path), count=180, top1=18, top5=90, loss=360.0)
    assert found == {"val/count": 360, "val/top1": 0.1, "val/top5": 0.5, "val/loss": 2.0}


def test_a_loss_that_is_not_finite_names_the_step_and_a_remedy(tmp_path):
    with pytest.raises(TrainingError, match=r"step 7: .* nan.* optim\."):
        evaluated(tiny_run(tmp_path), count=200, top1=20, top5=100, loss=np.nan)
