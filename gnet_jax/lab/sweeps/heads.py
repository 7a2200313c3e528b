"""What each head of a trained network knows: its loss and accuracy on the validation images.

The losses of training would not compare: dropout is stronger in front of the auxiliary heads.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gnet_jax.config import Preprocessing
from gnet_jax.data.augment import preprocess
from gnet_jax.data.bad_images import BadRecords
from gnet_jax.data.batches import eval_batches
from gnet_jax.model.googlenet import GoogLeNet, every_head
from gnet_jax.training.program import Run
from gnet_jax.training.sharding import compile_eval_step, put_batches
from gnet_jax.training.step import TrainState, head_names


def head_sums(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: GoogLeNet,
    preprocessing: Preprocessing,
) -> dict[str, Any]:
    """Sums over the examples whose `mask` is True: `count`, and per head `loss` and `top1`.

    The averaged parameters are used where the state has them.
    """
    variables = state.average or {"params": state.params, "batch_stats": state.batch_stats}
    images_BHWC = preprocess(batch["image"], preprocessing=preprocessing)
    outputs = every_head(model, variables, images_BHWC)
    label_B, mask_B = batch["label"], batch["mask"]
    sums: dict[str, Any] = {"count": jnp.sum(mask_B, dtype=jnp.int32)}
    for head, logits_BK in zip(head_names(model), (outputs.logits, *outputs.aux), strict=True):
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BK, label_B)
        hits_B = (jnp.argmax(logits_BK, axis=-1) == label_B) & mask_B
        sums[head] = {
            "loss": jnp.sum(jnp.where(mask_B, losses_B, 0.0)),
            "top1": jnp.sum(hits_B, dtype=jnp.int32),
        }
    return sums


class HeadEvaluator:
    """Evaluates every head of a run's network; compiles at its first call."""

    def __init__(self, run: Run) -> None:
        step = partial(
            head_sums, model=run.program.model, preprocessing=run.config.data.preprocessing
        )
        self._step = compile_eval_step(run.program.mesh, step)

    def __call__(self, run: Run, state: TrainState) -> tuple[int, dict[str, dict[str, float]]]:
        """The number of validation images, and mean `loss` and `top1` (a share of 1) by head.

        Args:
            run: the run, or one that differs in nothing but its seed.
            state: of its network.
        """
        d, program = run.config.data, run.program
        batches = eval_batches(
            run.val,
            batch_size=program.eval_batch_size,
            preprocessing=d.preprocessing,
            threads=d.threads,
            host=jax.process_index(),
            hosts=jax.process_count(),
            bad=BadRecords(run.val, d.bad_limit),
        )
        count, heads = 0, {head: {"loss": 0.0, "top1": 0.0} for head in head_names(program.model)}
        for batch in put_batches(batches, program.mesh, program.eval_batch_size):
            sums = jax.device_get(self._step(state, batch))
            count += int(sums.pop("count"))
            for head, values in sums.items():
                for name, value in values.items():
                    heads[head][name] += value.item()
        means = {
            head: {name: total / count for name, total in values.items()}
            for head, values in heads.items()
        }
        return count, means
