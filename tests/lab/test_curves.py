import pytest
from matplotlib.figure import Figure

from gnet_jax.lab.sweeps.curves import _draw_run


@pytest.mark.parametrize(("steps", "marker"), [(1, "o"), (3, "o"), (4, "None")])
def test_points_too_few_for_a_line_are_marked(steps, marker):
    loss, top1 = Figure().subplots(1, 2)
    lines = [{"step": n, "train/main_loss": 1.0, "train/main_top1": 0.5} for n in range(steps)]
    _draw_run(lines, loss, top1)
    for panel in (loss, top1):
        assert panel.lines[0].get_marker() == marker
        assert len(panel.lines[0].get_xdata()) == steps
