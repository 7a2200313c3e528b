"""A plan for eight chips that are virtual CPUs: the same path as for a pod, compiled in seconds."""

import dataclasses
import json

import jax
import pytest

from gnet_jax.config import ConfigError
from gnet_jax.data.sources import DataError
from gnet_jax.lab.cost.ledger import Layer, Ledger, network_ledger
from gnet_jax.model.googlenet import GoogLeNet, googlenet
from gnet_jax.ops.fast import FAST
from gnet_jax.ops.reference import REFERENCE
from gnet_jax.pods import plan as planning
from gnet_jax.pods.plan import (
    Collective,
    CompiledCost,
    DataSize,
    compile_cost,
    data_size,
    parse_out_of_memory,
    plan_program,
    plan_table,
    program_for,
    roofline,
    training_flops,
)
from gnet_jax.pods.topology import Chip, Host, Topology
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


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("plan"))
    # A CPU's form of a convolution over a small map would sum what is larger than its kernel.
    ops = dataclasses.replace(FAST, convolve=REFERENCE.convolve)
    model = GoogLeNet(tiny_arch(), ops=ops)
    return dataclasses.replace(program_for(config, toy(), SIZE), model=model)


@pytest.fixture(scope="module")
def cost(program):
    return compile_cost(program, CHIP)


@pytest.fixture
def plan(program, cost, monkeypatch):
    monkeypatch.setattr(planning, "compile_cost", lambda *_: cost)
    return plan_program(program, toy())


# Of one device; each number occurs once.
FAKE = CompiledCost(
    argument_bytes=3000,
    temp_bytes=70_000,
    memory_bytes=73_900,
    flops=6e9,
    bytes=8e8,
    cycles=0,
    collectives=(Collective("all-reduce", 3, 2**20),),
    fusions=7,
    convolutions=5,
    donated=2,
    seconds=0.5,
)


@pytest.fixture
def fake_plan(program, monkeypatch):
    """A function that plans a program with the given cost, without compiling it."""
    costs = Ledger(0, 0, 0, 5000, layers=(Layer("conv1", "conv", (), 1, (), 0, 700),))
    monkeypatch.setattr(planning, "network_ledger", lambda *_: costs)

    def plan(cost=FAKE, chip=CHIP):
        monkeypatch.setattr(planning, "compile_cost", lambda *_: cost)
        return plan_program(program, toy(chip))

    return plan


def test_a_plan_divides_a_chips_cost_by_its_images(fake_plan):
    plan = fake_plan()
    assert (plan.topology, plan.chips, plan.hosts, plan.batch_size) == ("toy:8", 8, 2, 32)
    # a chip's share is 32 / 8 = 4 images
    assert plan.flops_per_image == 6e9 / 4
    assert plan.flops_from == "compiler"
    assert plan.bytes_per_image == 8e8 / 4
    assert plan.temp_bytes_per_image == 70_000 / 4
    assert (plan.argument_bytes, plan.temp_bytes) == (3000, 70_000)
    assert (plan.fusions, plan.convolutions, plan.donated) == (7, 5, 2)
    assert plan.compile_seconds == 0.5


def test_a_plans_time_is_the_longest_side_of_the_roofline(fake_plan):
    plan = fake_plan()
    network = 2 * 2**20 * 7 / 8 / 1e9  # a ring sends a sum twice
    assert plan.seconds == pytest.approx({"compute": 0.06, "memory": 0.08, "network": network})
    assert (plan.bound, plan.step_seconds) == ("memory", 0.08)
    assert plan.images_per_sec == pytest.approx(32 / 0.08)
    assert plan.images_per_sec_per_host == pytest.approx(32 / 0.08 / 2)
    # 0.2 epochs of 1,000 images in batches of 32 are 6 steps
    assert plan.days == pytest.approx(6 * 0.08 / 86_400)


def test_a_plans_mfu_is_the_share_of_the_peak_rate_in_the_ledgers_flops(fake_plan):
    plan = fake_plan()
    assert plan.mfu == pytest.approx(4 * 28_600 / 0.08 / 100e9)  # four images on each chip
    slower = fake_plan(chip=dataclasses.replace(CHIP, platform="cuda"))  # float32: half the rate
    assert slower.seconds["compute"] == 2 * plan.seconds["compute"]
    assert slower.mfu == pytest.approx(4 * 28_600 / 0.12 / 50e9)


@pytest.mark.parametrize(
    ("host", "verdict"),
    [
        (Host("toy-4t", 1, 1e9), "fast enough: toy-4t can load 2.5 times as many images"),
        (Host("toy-4t", 1, None), "fast enough: toy-4t can load 2.5 times as many images"),
        (Host("toy-4t", 8, 11.2e6), "TOO SLOW: toy-4t can load 50% of the images; use --data"),
        (None, "unknown"),
    ],
)
def test_a_plan_compares_what_a_host_needs_with_its_machine(host, verdict, fake_plan, monkeypatch):
    monkeypatch.setattr(planning, "DECODED", {"pillow": 500.0, "fast": 600.0})
    monkeypatch.setattr(planning, "IMAGE_BYTES", 112e3)
    monkeypatch.setattr(planning, "HOSTS", {} if host is None else {"toy": host})
    found = fake_plan().input  # of 200 images/s
    assert found.decode_cpus == pytest.approx(200 / 500)
    assert found.read_bytes_per_sec == pytest.approx(200 * 112e3)
    assert found.host == host
    assert found.verdict.startswith(verdict)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["verdict"] == found.verdict


def test_a_part_of_a_machine_has_no_verdict(fake_plan, monkeypatch):
    monkeypatch.setattr(planning, "HOSTS", {"toy": Host("toy-8t", 1, 1e9)})
    found = fake_plan(chip=dataclasses.replace(CHIP, per_host=8)).input
    assert (found.host, found.verdict) == (None, "unknown, because the machine is unknown")


def test_a_plan_without_the_compilers_count_uses_the_ledgers(fake_plan):
    plan = fake_plan(dataclasses.replace(FAKE, flops=None))
    assert plan.flops_from == "ledger"
    # three passes of 5,000 multiply-adds, less the 700 of the first layer's input gradient
    assert plan.flops_per_image == plan.ledger_flops_per_image == 2 * (3 * 5000 - 700)
    assert plan.seconds["compute"] == pytest.approx(4 * 28_600 / 100e9)


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_a_step_fits_if_the_usable_memory_holds_it(missing, fits, fake_plan):
    required = FAKE.memory_bytes
    chip = dataclasses.replace(CHIP, hbm_bytes=2 * (required - missing), usable=0.5)
    plan = fake_plan(chip=chip)
    assert (plan.hbm_bytes, plan.hbm_available) == (required, required - missing)
    assert plan.fits == fits


def test_the_table_shows_every_figure_in_its_unit(fake_plan, monkeypatch):
    monkeypatch.setattr(planning, "DECODED", {"pillow": 500.0, "fast": 600.0})
    plan = fake_plan()
    refused = planning.Plan("v5e:1x1", 1, 1, 32, fits=False, hbm_bytes=2**35, hbm_available=2**34)
    names, known, unknown = (list(x._cells) for x in plan_table([plan, refused], "two").columns)
    known = dict(zip(names, known, strict=True))
    unknown = dict(zip(names, unknown, strict=True))
    assert known["chips on hosts"] == "8 on 2"
    assert known["images per step"] == "32 (4 per chip)"
    assert (known["fits"], unknown["fits"]) == ("yes", "NO")
    assert unknown["memory per chip"] == "32.00 of 16.00 GiB"
    assert known["GFLOP per image"] == "1.50"
    assert known["MB per image"] == "200.0"
    assert known["collectives"] == "3 all-reduce, 1.0 MiB"
    assert known["ms per step, compute alone"] == "60.00"
    assert known["ms per step, memory alone"] == "80.00"
    assert known["ms per step, network alone"] == "1.84"
    assert known["bound by"] == "memory"
    assert known["images/s, upper limit"] == "400"
    assert known["  that each host decodes"] == "200"
    assert known["  vCPUs for that, of a host's"] == "0.4 of -"
    assert known["  GB/s read for that"] == "0.02 of -"
    assert known["  the input is"].startswith("unknown")
    assert unknown["  vCPUs for that, of a host's"] == "- of -"
    for name in ("  the input is", "GFLOP per image", "bound by", "days, lower limit"):
        assert unknown[name] == "-"


def test_a_compiled_step_has_memory_traffic_and_arithmetic(plan):
    assert plan.fits
    assert 0 < plan.temp_bytes < plan.hbm_bytes < plan.hbm_available
    assert plan.flops_per_image > 0
    assert plan.bytes_per_image > 0


def test_the_memory_of_a_compiled_step_is_that_of_its_state_and_images(cost, program):
    state = jax.tree.leaves(program.abstract_state())
    size = sum(x.size * x.dtype.itemsize for x in state)
    images = 4 * (16 * 16 * 3 + 4)  # one device's share of 32 images and labels
    assert cost.argument_bytes == size + images
    # The results reuse the memory of the state, except for a few metrics.
    assert 0 < cost.memory_bytes - cost.argument_bytes - cost.temp_bytes < 2000
    assert cost.seconds > 0


def test_a_gpus_program_is_compiled_without_tuning_and_others_with_the_defaults(
    program, monkeypatch
):
    given = []

    def compile_step(mesh, step, state, batch, **options):
        given.append(options)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 2.0G of 1.0G hbm")

    monkeypatch.setattr(planning, "compile_train_step", compile_step)
    for chip in (CHIP, dataclasses.replace(CHIP, platform="cuda")):
        with pytest.raises(jax.errors.JaxRuntimeError):
            compile_cost(program, chip)
    assert given == [
        {"manual": False, "compiler_options": None},
        {"manual": False, "compiler_options": {"xla_gpu_autotune_level": "0"}},
    ]


def test_the_gradients_of_every_parameter_are_summed_over_the_chips(plan, program):
    (found,) = plan.collectives
    params = program.abstract_state().params
    size = sum(x.size * 4 for x in jax.tree.leaves(params))
    assert found.kind == "all-reduce"
    assert size <= found.bytes <= size + 1000  # and a few metrics


def test_the_whole_state_is_donated(plan, program):
    """Its buffers are used again, or a step would need the state twice."""
    assert plan.donated == len(jax.tree.leaves(program.abstract_state()))


def test_a_plan_is_json(plan):
    found = json.loads(json.dumps(dataclasses.asdict(plan)))
    promised = (
        "fits",
        "hbm_bytes",
        "flops_per_image",
        "bytes_per_image",
        "images_per_sec",
        "bound",
    )
    assert all(found[name] is not None for name in promised)
    assert found["collectives"][0].keys() == {"kind", "count", "bytes"}


def test_a_step_that_the_compiler_refuses_does_not_fit(program, monkeypatch):
    def refuse(program, chip):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 32.0G of 15.75G hbm.")

    monkeypatch.setattr(planning, "compile_cost", refuse)
    found = plan_program(program, toy())
    assert (found.topology, found.chips, found.hosts, found.batch_size) == ("toy:8", 8, 2, 32)
    assert not found.fits
    assert found.hbm_bytes == 2**35


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 20.25G of 15.75G hbm. Exceeded ...", 20.25 * 2**30),
        ("RESOURCE_EXHAUSTED: ... Used 512.0M of 15.75G hbm.", 2**29),
    ],
)
def test_the_required_memory_is_read_from_the_compilers_message(text, needed):
    assert parse_out_of_memory(text) == needed


def test_other_compiler_messages_are_not_about_memory():
    assert parse_out_of_memory("INTERNAL: Used 1.0G of 2.0G") is None


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
    assert training_flops(costs) == pytest.approx(9.31e9, rel=0.01)


def test_a_batch_that_does_not_divide_is_refused_before_anything_compiles(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size 30 .* 8 devices.*24 or 32"):
        program_for(tiny_config(tmp_path, batch_size=30), toy(), SIZE)


def test_sizes_come_from_the_data_from_imagenets_description_or_from_the_options():
    digits = data_size("digits")
    assert (digits.images, len(digits.class_names)) == (1437, 10)
    told = data_size("tfds:nowhere", images=5, classes=3)
    assert told == DataSize(5, ("0", "1", "2"))
    assert data_size("digits", images=7) == DataSize(7, digits.class_names)
    assert data_size("digits", classes=2) == DataSize(1437, ("0", "1"))


def test_imagenets_size_is_known_without_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    found = data_size("tfds:imagenet2012")
    assert (found.images, len(found.class_names)) == (1_281_167, 1000)


def test_missing_data_require_their_size(tmp_path):
    with pytest.raises(DataError, match=r"--images and --classes"):
        data_size(f"folder:{tmp_path}/nowhere")
