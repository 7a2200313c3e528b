"""The paper's grid of models and crops, with its own figures beside (its Table 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from gnet_jax.data import Source
from gnet_jax.inference.crops import Crops
from gnet_jax.inference.evaluate import Evaluation, evaluate
from gnet_jax.inference.predict import TrainedModel

# (models, crops) to top-5 error on ImageNet's validation images, in per cent.
PAPER_TOP5_ERROR: Mapping[tuple[int, int], float] = {
    (1, 1): 10.07,
    (1, 10): 9.15,
    (1, 144): 7.89,
    (7, 1): 8.09,
    (7, 10): 7.62,
    (7, 144): 6.67,
}


def evaluate_grid(
    models: Sequence[TrainedModel],
    source: Source,
    crops: Sequence[Crops] = (1, 10, 144),
    **options: Any,
) -> list[Evaluation]:
    """The first model alone and then all of them together, each with every number of crops.

    `options` are those of `evaluate`, and so are the errors.
    """
    ensembles = [models[:1], models] if len(models) > 1 else [models]
    return [evaluate(chosen, source, n, **options) for chosen in ensembles for n in crops]


def paper_table(evaluations: Sequence[Evaluation]) -> Table:
    """Measured top-1 and top-5 errors, and the paper's where it has that number of both."""
    table = Table(
        title="Error by models and crops",
        caption="paper: GoogLeNet on ImageNet's validation images (arXiv 1409.4842, Table 3)",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("models", "crops", "images", "top-1 error", "top-5 error", "paper's top-5 error"):
        table.add_column(name, justify="right", no_wrap=True)
    for e in evaluations:
        paper = PAPER_TOP5_ERROR.get((e.models, e.crops))
        table.add_row(
            f"{e.models}",
            f"{e.crops}",
            f"{e.images:,}",
            f"{1 - e.top1:.2%}",
            f"{1 - e.top5:.2%}",
            "" if paper is None else f"{paper:.2f}%",
        )
    return table
