import pytest

from gnet_jax.pods.topology import CHIPS, HOSTS, find_chip


def test_peaks_are_those_of_the_makers_pages():
    found = {
        name: (chip.flops / 1e12, chip.bandwidth / 1e9, chip.link_bandwidth / 1e9, chip.per_host)
        for name, chip in CHIPS.items()
    }
    assert found == {
        "v4": (275, 1200, 300, 4),
        "v5e": (197, 819, 200, 4),
        "v5p": (459, 2765, 600, 4),
        "v6e": (918, 1638, 400, 4),
        "a100": (312, 2039, 300, 8),
        "h100": (989.4, 3350, 450, 8),
        "h200": (989.4, 4800, 450, 8),
    }
    sizes = {"v4": 32 * 2**30, "v5e": 16 * 2**30, "h100": 80e9, "h200": 141e9}
    assert all(CHIPS[name].hbm_bytes == size for name, size in sizes.items())
    assert {name: chip.usable for name, chip in CHIPS.items() if chip.usable < 1} == {
        "a100": 0.75,
        "h100": 0.75,
        "h200": 0.75,
    }


def test_every_chip_has_a_host_with_its_vcpus():
    assert {name: host.cpus for name, host in HOSTS.items()} == {
        "v4": 240,
        "v5e": 112,
        "v5p": 208,
        "v6e": 180,
        "a100": 96,
        "h100": 208,
        "h200": 224,
    }
    assert HOSTS.keys() == CHIPS.keys()


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


def test_a_chip_is_found_by_the_name_that_jax_gives_it():
    found = {
        kind: getattr(find_chip(kind), "name", None)
        for kind in ("TPU v5 lite", "TPU v5p", "NVIDIA H200", "NVIDIA H100 PCIe", "cpu")
    }
    assert list(found.values()) == ["v5e", "v5p", "h200", None, None]


def test_float32_has_half_the_rate_of_bfloat16_on_gpus_and_the_same_on_tpus():
    for chip in CHIPS.values():
        slower = 2 if chip.platform == "cuda" else 1
        assert chip.peak("float32") * slower == chip.peak("bfloat16") == chip.flops
