"""Dead heads, told early: a classifier whose loss stays at that of guessing.

GoogLeNet without batch norm can train for weeks while only an auxiliary head learns (the main loss
of BVLC/caffe#1598 stood at ln 1000 = 6.908 for 2.4 million steps). No error would ever say so.
"""

import math
from collections.abc import Mapping, Sequence

MARGIN = 0.02  # a loss this close to ln(classes) is that of guessing
LEARNS = 0.1  # a head this far below it has learned something

DIVERGED = (
    "lower optim.learning_rate, lengthen optim.warmup_epochs or set optim.clip_norm, in another "
    "workdir"
)
REMEDIES = (
    "lower optim.learning_rate (0.005 has cured a main head at 0.01), lengthen "
    "optim.warmup_epochs, set optim.clip_norm, take model.variant batch_norm, and look at the "
    "labels with gnet show-data"
)


class TrainingError(RuntimeError):
    """A run that cannot go on: its numbers are no longer numbers, it does not learn, or its last
    checkpoint cannot be written.
    """


class LoneError(TrainingError):
    """One that the other hosts do not know of, and would wait: see `hosts.ending_together`."""


class DeadHeadGuard:
    """Watches the heads' mean losses from report to report.

    A head is dead when every report over `patience` steps after the warm-up had its loss within
    0.02 of ln(classes): what equal probabilities cost, whatever the label smoothing or mixup.
    """

    def __init__(self, heads: Sequence[str], classes: int, *, warmup: int, patience: int) -> None:
        self._heads = tuple(heads)  # the main one first
        self._guessing = math.log(classes)
        self._warmup = warmup
        self._patience = patience
        self._since: dict[str, int] = {}  # head: the first step of its present stretch
        self._said = False

    def read(self, step: int, means: Mapping[str, float]) -> str | None:
        """What is wrong, in one sentence with its remedies; None where nothing is, or it was said.

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
        dead = [h for h, since in self._since.items() if step - since >= self._patience]
        learning = [h for h, loss in losses.items() if loss < self._guessing - LEARNS]
        main = self._heads[0]
        if main not in dead or not (learning or len(dead) == len(losses)):
            self._said = self._said and main in self._since
            return None
        if self._said:
            return None
        self._said = True
        what = (
            f"the main head has not learned since step {self._since[main]}, while "
            f"{' and '.join(learning)} did"
            if learning
            else f"no head has learned since step {max(self._since.values())}"
        )
        return (
            f"{what}: its loss is {losses[main]:.3f}, and guessing costs "
            f"{self._guessing:.3f}. Remedies: {REMEDIES}"
        )


def patience_of(steps_per_epoch: float) -> int:
    """Steps that a head may take to begin: an epoch, but at least 200 and at most 10,000.

    The paper's network begins within some thousand steps of batch 32.
    """
    return round(min(max(steps_per_epoch, 200), 10_000))
