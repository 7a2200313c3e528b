"""Steps compiled by the accelerators' own compilers, where those are installed."""

import dataclasses
import importlib.util

import pytest

from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.pods.plan import DataSize, compile_cost, plan_program, program_for
from gnet_jax.pods.topology import CUDA_PLUGINS, get_topology
from tests.tiny import tiny_arch, tiny_config

SIZE = DataSize(1000, tuple(map(str, range(10))))
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu]'"
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None
    or not any(importlib.util.find_spec(name) for name in CUDA_PLUGINS),
    reason="needs JAX's CUDA plugin: pip install -e '.[plan]'",
)


def tiny_program(tmp_path, topology):
    program = program_for(tiny_config(tmp_path), topology, SIZE)
    return dataclasses.replace(program, model=GoogLeNet(tiny_arch()))


@pytest.mark.slow
@needs_libtpu
def test_a_tpus_compiler_counts_arithmetic_traffic_and_cycles(tmp_path):
    topology = get_topology("v5e:2x2")
    assert (len(topology.devices), topology.hosts) == (4, 1)
    cost = compile_cost(tiny_program(tmp_path, topology), topology.chip)
    assert cost.flops > 0
    assert cost.bytes > 0
    assert cost.cycles > 0
    assert cost.donated > 0
    assert [each.kind for each in cost.collectives] == ["all-reduce"]


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("text", "chips", "hosts"),
    [("v5e:1x1", 1, 1), ("v5e:16x16", 256, 64), ("v4:2x2x2", 8, 2), ("v6e:8x8", 64, 16)],
)
def test_a_slice_has_a_device_for_each_chip(text, chips, hosts):
    topology = get_topology(text)
    assert len(topology.devices) == chips
    assert len({device.process_index for device in topology.devices}) == topology.hosts == hosts


@pytest.mark.slow
@needs_cuda
def test_a_gpus_compiler_plans_without_a_gpu(tmp_path):
    topology = get_topology("h100:8")
    found = plan_program(tiny_program(tmp_path, topology), topology)
    assert found.fits
    assert found.flops_from == "ledger"
    assert found.bytes_per_image > 0
    assert found.temp_bytes > 0
    assert [each.kind for each in found.collectives] == ["all-reduce"]
