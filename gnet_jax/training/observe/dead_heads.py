"""Detect dead heads early: classifiers whose loss stays at that of guessing.

GoogLeNet without batch norm can train for weeks while only an auxiliary head learns (the main loss
of BVLC/caffe#1598 stayed at ln 1000 = 6.908 for 2.4 million steps), without any error.
"""

import math
from collections.abc import Mapping, Sequence

MARGIN = 0.02  # a loss this close to ln(classes) is that of guessing
LEARNS = 0.1  # a head whose loss is this far below it has learned something

DIVERGED = (
    "lower optim.learning_rate, lengthen optim.warmup_epochs or set optim.clip_norm, in another "
    "workdir"
)
REMEDIES = (
    "lower optim.learning_rate (0.005 has cured a main head at 0.01), lengthen "
    "optim.warmup_epochs, set optim.clip_norm, use model.variant batch_norm, or check the labels "
    "with gnet show-data"
)


class DeadHeadGuard:
    """Watches the heads' mean losses from report to report.

    A head is dead if the loss of every report over `patience` steps after the warm-up was within
    0.02 of ln(classes), the loss of equal probabilities whatever the label smoothing or mixup.
    """

    def __init__(self, heads: Sequence[str], classes: int, *, warmup: int, patience: int) -> None:
        self._heads = tuple(heads)  # the main one first
        self._guessing = math.log(classes)
        self._warmup, self._patience = warmup, patience
        self._since: dict[str, int] = {}  # the first step at which a head guessed
        self._reported = False

    def read(self, step: int, means: Mapping[str, float]) -> str | None:
        """Returns the problem and its remedies; None if there is none or it was returned before.

        Args:
            step: the last step that `means` cover.
            means: `main_loss`, `aux4a_loss` and so on, means over the steps since the last call.
        """
        losses = {head: means[f"{head}_loss"] for head in self._heads}
        for head, loss in losses.items():
            if step <= self._warmup or abs(loss - self._guessing) > MARGIN:
                self._since.pop(head, None)
            else:
                self._since.setdefault(head, step)
        dead = [head for head, since in self._since.items() if step - since >= self._patience]
        learning = [head for head, loss in losses.items() if loss < self._guessing - LEARNS]
        main = self._heads[0]
        if main not in dead or not (learning or len(dead) == len(losses)):
            self._reported = self._reported and main in self._since
            return None
        if self._reported:
            return None
        self._reported = True
        if learning:
            what = f"the main head has not learned since step {self._since[main]}, but "
            what += f"{' and '.join(learning)} did"
        else:
            what = f"no head has learned since step {max(self._since.values())}"
        return (
            f"{what}: the main loss is {losses[main]:.3f}, and guessing costs "
            f"{self._guessing:.3f}. To fix it: {REMEDIES}"
        )


def default_patience(steps_per_epoch: float) -> int:
    """Returns an epoch's steps, at least 200 and at most 10,000.

    The paper's network starts to learn within a few thousand steps of batch 32.
    """
    return round(min(max(steps_per_epoch, 200), 10_000))
