"""The table of models and crops."""

import io

from rich.console import Console

from gnet_jax.inference.evaluate import Evaluation
from gnet_jax.inference.paper import evaluate_grid, paper_table


def shown(evaluations) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(paper_table(evaluations))
    return console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_papers_figure_stands_beside_the_same_models_and_crops_only():
    own = [Evaluation(1000, 600, 840, 10, 1, 9.0), Evaluation(1000, 610, 850, 10, 2, 9.0)]
    one, two = (line for line in shown(own) if "1,000" in line)
    assert [cell.strip() for cell in one.split("│")[4:7]] == ["40.00%", "16.00%", "9.15%"]
    assert [cell.strip() for cell in two.split("│")[4:7]] == ["39.00%", "15.00%", ""]
    assert "1409.4842" in " ".join(shown(own))


def test_the_grid_is_one_model_and_then_all_of_them(model_a, make_model, make_photos):
    source = make_photos(3)
    found = evaluate_grid([model_a, make_model(3)], source, [1, 10], progress=False)
    assert [(e.models, e.crops) for e in found] == [(1, 1), (1, 10), (2, 1), (2, 10)]
    assert {e.images for e in found} == {3}
    assert [e.models for e in evaluate_grid([model_a], source, [1])] == [1]
