import dataclasses
import types

import numpy as np
import pytest

from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training import evaluation
from gnet_jax.training.evaluation import evaluate
from gnet_jax.training.hosts.start import TrainingError
from gnet_jax.training.hosts.stop import StopRequest, Vote
from tests.tiny import tiny_arch, tiny_run, with_program


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


def test_there_is_no_top_5_accuracy_of_five_classes(tmp_path):
    run, sums = tiny_run(tmp_path), {"count": 180, "top1": 18, "top5": 180, "loss": 360.0}
    for classes, found in ((5, False), (6, True)):
        model = GoogLeNet(dataclasses.replace(tiny_arch(), num_classes=classes))
        values = evaluated(with_program(run, model=model), **sums)
        assert ("val/top5" in values) is found
        assert values["val/top1"] == 0.1


def test_a_loss_that_is_not_finite_names_the_step_and_a_remedy(tmp_path):
    with pytest.raises(TrainingError, match=r"step 7: .* nan.* optim\."):
        evaluated(tiny_run(tmp_path), count=200, top1=20, top5=100, loss=np.nan)


def test_each_host_reads_its_share_of_the_validation_set_as_the_config_says(tmp_path, monkeypatch):
    run, given, left_out = tiny_run(tmp_path, eval_batch_size=16), [], []
    bad_images = types.SimpleNamespace(val="bad", step=0, report_left_out=left_out.append)

    class Local:
        fault = None

        def __init__(self, batches, empty, count):
            assert count == 23  # of 16 images
            given.append((batches, {name: (x.shape, x.dtype) for name, x in empty.items()}))

    monkeypatch.setattr(evaluation, "EvalBatches", Local)
    monkeypatch.setattr(evaluation, "eval_batches", lambda *a, **options: (a, options))
    monkeypatch.setattr(evaluation, "put_batches", lambda _, mesh, size: iter([size]))
    monkeypatch.setattr(evaluation.jax, "process_count", lambda: 2)
    monkeypatch.setattr(evaluation.jax, "process_index", lambda: 1)
    sums = {"count": np.int32(350), "top1": np.int32(35), "loss": np.float32(700)}
    vote = types.SimpleNamespace(flag=lambda _: 0, stops_evaluation=lambda _: False)
    found = evaluate(run, lambda *_: (sums, 0), 7, None, bad_images=bad_images, vote=vote)
    assert found == {"val/count": 350, "val/top1": 0.1, "val/loss": 2.0}
    assert (bad_images.step, left_out) == (7, [10])  # of 360 images
    ((arguments, options), empty) = given[0]
    assert arguments == (run.val,)
    assert options == {
        "batch_size": 16,
        "preprocessing": run.config.data.preprocessing,
        "bad": "bad",
        "host": 1,
        "hosts": 2,
        "threads": 2,
    }
    assert empty == {
        "image": ((8, 16, 16, 3), np.uint8),
        "label": ((8,), np.int32),
        "mask": ((8,), np.bool_),
    }
