"""A plan for eight chips that are virtual CPUs: the same path as for a pod, compiled in seconds."""

import dataclasses
import json

import jax
import pytest

from gnet_jax.config import ConfigError
from gnet_jax.data.sources import DataError
from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.model.googlenet import GoogLeNet, googlenet
from gnet_jax.ops.fast import FAST
from gnet_jax.ops.reference import REFERENCE
from gnet_jax.pods import plan as planning
from gnet_jax.pods.chips import Chip
from gnet_jax.pods.compiled import Collective, OutOfMemoryError, compile_cost, out_of_memory
from gnet_jax.pods.data_size import DataSize, data_size
from gnet_jax.pods.plan import plan_program, program_for, roofline, training_flops
from gnet_jax.pods.table import plan_table
from gnet_jax.pods.topology import Topology
from tests.tiny import tiny_arch, tiny_config

CHIP = Chip(
    name="toy",
    platform="tpu",
    flops=100e9,
    hbm_bytes=2**30,
    bandwidth=10e9,
    link_bandwidth=1e9,
    per_host=4,
    source="https://example.org",
)
SIZE = DataSize(images=1000, class_names=tuple(map(str, range(10))))


def toy(chip=CHIP):
    return Topology("toy:8", chip, hosts=2, devices=jax.devices())


def tiny_program(tmp_path, **changes):
    program = program_for(tiny_config(tmp_path, **changes), toy(), SIZE)
    # A CPU's form of a convolution over a small map would sum what is larger than its kernel.
    ops = dataclasses.replace(FAST, convolve=REFERENCE.convolve)
    return dataclasses.replace(program, model=GoogLeNet(tiny_arch(), ops=ops))


@pytest.fixture(scope="module")
def cost(tmp_path_factory):
    return compile_cost(tiny_program(tmp_path_factory.mktemp("plan")), CHIP)


@pytest.fixture
def plan(cost, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "compile_cost", lambda *_: cost)
    return plan_program(tiny_program(tmp_path), toy())


def test_a_plan_has_every_figure_and_they_agree_with_each_other(plan):
    assert (plan.chips, plan.hosts, plan.batch_size) == (8, 2, 32)
    assert plan.fits
    assert 0 < plan.temp_bytes < plan.hbm_bytes < plan.hbm_available
    assert plan.step_seconds == plan.seconds[plan.bound] == max(plan.seconds.values())
    assert plan.images_per_sec == pytest.approx(32 / plan.step_seconds)
    assert plan.images_per_sec_per_host == plan.images_per_sec / 2
    # 0.2 epochs of 1,000 images in batches of 32 are 6 steps
    assert plan.days == pytest.approx(6 * plan.step_seconds / 86_400)


def test_the_gradients_of_every_parameter_are_summed_over_the_chips(plan, tmp_path):
    (found,) = plan.collectives
    params = tiny_program(tmp_path).abstract_state().params
    size = sum(x.size * 4 for x in jax.tree.leaves(params))
    assert found.kind == "all-reduce"
    assert size <= found.bytes <= size + 1000  # and a few metrics


def test_the_whole_state_is_donated(plan, tmp_path):
    """Its buffers are used again, or a step would need the state twice."""
    assert plan.donated == len(jax.tree.leaves(tiny_program(tmp_path).abstract_state()))


def test_a_plan_is_json_and_a_table(plan):
    found = json.loads(json.dumps(plan.as_dict()))
    promised = (
        "fits",
        "hbm_bytes",
        "flops_per_image",
        "bytes_per_image",
        "images_per_sec",
        "bound",
        "collectives",
    )
    assert all(found[name] is not None for name in promised)
    assert found["collectives"][0].keys() == {"kind", "count", "bytes"}
    refused = planning.Plan("v5e:1x1", 1, 1, 32, fits=False, hbm_bytes=2**35, hbm_available=2**34)
    table = plan_table([plan, refused], "two")
    assert [len(column._cells) for column in table.columns] == [table.row_count] * 3


def test_what_the_compiler_finds_too_large_is_a_plan_that_does_not_fit(tmp_path, monkeypatch):
    def refuse(program, chip):
        raise OutOfMemoryError("too large", 2**35)

    monkeypatch.setattr(planning, "compile_cost", refuse)
    found = plan_program(tiny_program(tmp_path), toy())
    assert not found.fits
    assert found.hbm_bytes == 2**35


def test_a_step_that_needs_more_than_a_chip_has_does_not_fit(plan, tmp_path):
    small = dataclasses.replace(CHIP, hbm_bytes=plan.hbm_bytes // 2)
    found = plan_program(tiny_program(tmp_path), toy(small))
    assert not found.fits


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 20.25G of 15.75G hbm. Exceeded ...", 20.25 * 2**30),
        ("RESOURCE_EXHAUSTED: ... Used 512.0M of 15.75G hbm.", 2**29),
    ],
)
def test_the_memory_that_is_missing_is_read_from_the_compilers_message(text, needed):
    found = out_of_memory(text, CHIP)
    assert found is not None
    assert found.needed == needed


def test_another_message_of_the_compiler_is_none_about_memory():
    assert out_of_memory("INTERNAL: Used 1.0G of 2.0G", CHIP) is None


def test_the_roofline_is_each_side_at_its_peak():
    found = roofline(CHIP, 50e9, 20e9, (Collective("all-reduce", 3, 10**9),), 4)
    assert found == pytest.approx({"compute": 0.5, "memory": 2.0, "network": 1.5})
    gathered = roofline(CHIP, 0, 0, (Collective("all-gather", 1, 10**9),), 4)
    assert gathered["network"] == pytest.approx(0.75)
    assert roofline(CHIP, 0, 0, (Collective("all-reduce", 1, 10**9),), 1)["network"] == 0


def test_the_ledgers_training_step_is_three_forward_passes_less_the_first_layers_input():
    costs = network_ledger(googlenet("paper"), 224)
    first = 7 * 7 * 3 * 64 * 112 * 112
    assert costs.layers[0].macs == first
    assert training_flops(costs) == 6 * costs.macs_with_aux - 2 * first


def test_a_batch_that_does_not_divide_is_refused_before_anything_compiles(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size 30 .* 8 devices.*24 or 32"):
        program_for(tiny_config(tmp_path, batch_size=30), toy(), SIZE)


def test_sizes_come_from_the_data_from_imagenets_description_or_from_the_options():
    digits = data_size("digits")
    assert (digits.images, len(digits.class_names)) == (1437, 10)
    told = data_size("tfds:nowhere", images=5, classes=3)
    assert told == DataSize(5, ("0", "1", "2"))
    assert data_size("digits", images=7) == DataSize(7, digits.class_names)


def test_imagenets_size_is_known_without_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    found = data_size("tfds:imagenet2012")
    assert (found.images, len(found.class_names)) == (1_281_167, 1000)


def test_data_that_are_not_here_ask_for_their_size(tmp_path):
    with pytest.raises(DataError, match=r"--images and --classes"):
        data_size(f"folder:{tmp_path}/nowhere")
