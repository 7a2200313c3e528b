import types

import numpy as np
import pytest

from gnet_jax.training.evaluate import Evaluator
from gnet_jax.training.hosts.agree import TrainingError
from gnet_jax.training.hosts.stop import StopRequest, Vote
from tests.tiny import tiny_run


def test_a_loss_that_is_not_finite_names_the_step_and_the_remedies(tmp_path):
    run = tiny_run(tmp_path)
    sums = {"count": 200, "top1": 20, "top5": 100, "loss": np.nan}
    compiled = types.SimpleNamespace(
        eval_step=lambda _: (
            lambda *_: (
                {name: np.array(value) for name, value in sums.items()},
                np.int32(0),
            )
        )
    )
    bad_images = types.SimpleNamespace(val=None, report_left_out=lambda _: None)
    evaluate = Evaluator(run, compiled, bad_images, Vote(run.mesh, StopRequest()))
    with pytest.raises(TrainingError, match=r"step 7: the validation loss is nan; lower optim\."):
        evaluate(7, None)
