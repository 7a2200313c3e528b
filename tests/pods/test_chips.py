import pytest

from gnet_jax.pods.chips import CHIPS


def test_the_accelerators_that_are_planned_for_are_known():
    assert {"v4", "v5e", "v5p", "v6e", "h100"} <= set(CHIPS)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_every_figure_is_of_a_plausible_size_and_has_a_source(chip):
    assert 100e12 < chip.flops < 3000e12
    assert 15e9 < chip.hbm_bytes < 300e9
    assert 0.5e12 < chip.bandwidth < 10e12
    assert 0.1e12 < chip.link_bandwidth < chip.bandwidth
    assert 0 < chip.usable <= 1
    assert chip.source.startswith("https://")


def test_a_gpu_is_described_to_its_compiler_by_the_same_figures():
    for chip in CHIPS.values():
        assert bool(chip.description) == (chip.platform == "cuda")
        if chip.description:
            assert f"memory_bandwidth: {chip.bandwidth:.0f}" in chip.description
            assert f"device_memory_size: {chip.hbm_bytes}" in chip.description
