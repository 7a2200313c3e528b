"""The time of operations and scopes, from the text of a program and from traces of all kinds."""

import types

import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import UserError
from gnet_jax.lab.cost import trace
from gnet_jax.lab.cost.trace import parse_program, read_profile, scope_of
from gnet_jax.training.observe.profile import PROGRAM, window_folder

HLO = """HloModule jit_step, is_scheduled=true, num_partitions=2

%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %add.1 = f32[2]{0} add(%p, %p), metadata={op_name="jit(step)/jvp(loss)/add"}
}

%body (t: (s32[], f32[2])) -> (s32[], f32[2]) {
  %t = (s32[], f32[2]{0:T(128)}) parameter(0)
  ROOT %mul.1 = f32[2]{0} multiply(%t, %t), metadata={op_name="jit(step)/optimizer/mul"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %copy.1 = f32[2]{0} copy(%x)
  %conv.1 = f32[2]{0} convolution(%copy.1, %x), metadata={op_name="jit(step)/jvp(GoogLeNet)/stem/c"}
  %fusion.1 = f32[2]{0:T(8,128)(2,1)} fusion(%conv.1), kind=kLoop, calls=%fused
  %all-reduce.1 = (f32[2]{0}, f32[]) all-reduce(%fusion.1, %x), to_apply=%fused
  %while.1 = (s32[], f32[2]{0}) while(%all-reduce.1), body=%body, metadata={op_name="jit(step)/a"}
  ROOT %copy.2 = f32[2]{0} copy(%while.1)
}
"""


def test_operations_without_a_name_have_that_of_their_root_or_neighbour():
    scopes = {name: scope_of(source)[0] for name, source in parse_program(HLO).items()}
    assert scopes == {
        "p": "loss",
        "add.1": "loss",
        "t": "optimizer",
        "mul.1": "optimizer",
        "x": "stem",
        "copy.1": "stem",
        "conv.1": "stem",
        "fusion.1": "loss",
        "all-reduce.1": "communication",
        "copy.2": "other",
    }  # and not the loop, because the trace also has what is inside it


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "jit(f)/jvp(GoogLeNet)/inception_4a/b3/conv/conv_general_dilated",
            ("inception_4a", False),
        ),
        ("jit(f)/transpose(jvp(GoogLeNet))/aux_4d/fc/dot_general", ("aux_4d", True)),
        ("jit(f)/transpose(jvp(loss))/mul", ("loss", True)),
        ("jit(f)/shard_map/while/body/closed_call/jvp(GoogLeNet)/head/dot", ("head", False)),
        ("jit(f)/augment/vmap(jit(_bernoulli))/while/body/add", ("augment", False)),
        ("jit(f)/jit(_threefry_split)/step_keys/xor", ("other", False)),
        ("state.params['stem']", ("other", False)),
        ("", ("other", False)),
    ],
)
def test_a_scope_is_the_outermost_one_in_the_name(source, expected):
    assert scope_of(source) == expected


def event(name, start, end, **stats):
    return types.SimpleNamespace(name=name, start_ns=start, end_ns=end, stats=stats.items())


def plane(name, **lines):
    made = [types.SimpleNamespace(name=k.replace("_", " "), events=v) for k, v in lines.items()]
    return types.SimpleNamespace(name=name, lines=made)


def op(name, start, end, module="jit_step", **stats):
    return event(name, start, end, hlo_op=name, hlo_module=module, **stats)


CPU = [
    plane(
        "/host:CPU",
        worker=[
            op("conv.1", 0, 1e6, device_ordinal=0, _p=7),  # runs on in other threads
            event("end: conv.1", 4e6, 5e6, _c=7),
            op("conv.1", 0, 3e6, device_ordinal=1, _p=8),
            op("while.1", 0, 9e6, device_ordinal=0),
            op("conv.1", 0, 9e6, module="jit_eval", device_ordinal=0),
            event("fusion.1", 0, 9e6),  # of the host, by chance with an operation's name
        ],
    )
]
GPU = [
    plane("/host:CPU", worker=[op("conv.1", 0, 1e6)]),  # launches it
    plane("/device:GPU:0", Stream=[op("conv.1", 1e6, 9e6)]),
]
TPU = [
    plane(
        "/device:TPU:0",
        Steps=[event("conv.1", 0, 50e6)],
        XLA_Ops=[event("%conv.1 = f32[2]{0} convolution(%copy.1)", 0, 8e6)],
    )
]


@pytest.mark.parametrize(("planes", "devices"), [(CPU, 2), (GPU, 1), (TPU, 1)])
def test_a_profile_has_the_mean_time_per_step_and_device(tmp_path, monkeypatch, planes, devices):
    """Eight milliseconds in two steps, on two CPU devices, on a GPU or on a TPU."""
    folder = window_folder(tmp_path, 4, 5)
    folder.mkdir(parents=True)
    (folder / PROGRAM).write_text(HLO)
    (folder / "host-0.xplane.pb").touch()
    reader = types.SimpleNamespace(from_file=lambda _: types.SimpleNamespace(planes=planes))
    monkeypatch.setattr(trace.jax.profiler, "ProfileData", reader)
    found = read_profile(tmp_path)
    assert (found.first, found.last, found.devices) == (4, 5, devices)
    assert [(each.name, each.scope) for each in found.operations] == [("conv.1", "stem")]
    assert found.scopes() == {"stem": (pytest.approx(8 / 2 / devices), 0)}


def test_a_corrupt_trace_is_named(tmp_path):
    folder = window_folder(tmp_path, 4, 5)
    folder.mkdir(parents=True)
    (folder / PROGRAM).write_text(HLO)
    (folder / "host-0.xplane.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"host-0\.xplane\.pb is corrupt"):
        read_profile(tmp_path)


def test_a_run_or_window_without_a_trace_is_a_users_mistake(tmp_path, capsys):
    assert main(["profile", str(tmp_path)]) == 2
    assert "--profile" in capsys.readouterr().err
    folder = window_folder(tmp_path, 4, 5)
    folder.mkdir(parents=True)
    (folder / PROGRAM).write_text(HLO)
    assert main(["profile", str(tmp_path), "--window", "6:7"]) == 2
    error = capsys.readouterr().err
    assert "6:7" in error
    assert "4:5" in error
    assert main(["profile", str(tmp_path), "--window", "7"]) == 2
    capsys.readouterr()
    assert main(["profile", str(tmp_path / "missing")]) == 2
    assert f"no folder {tmp_path / 'missing'}" in capsys.readouterr().err
