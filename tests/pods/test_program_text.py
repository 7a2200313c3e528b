"""Sizes, collectives and donation, read from a program that is small enough to count by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.config import UserError
from gnet_jax.pods.plan import (
    Collective,
    array_bytes,
    count_donated,
    count_operations,
    count_traffic,
    find_collectives,
    sum_cycles,
)

# As XLA writes them: a program for a TPU, shortened.
PROGRAM = """HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }, entry_computation_layout={(f32[4,8]{1,0})->f32[]}, num_partitions=4

%fused (param.1: bf16[16,8]) -> bf16[16,4] {
  %param.1 = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %convolution.3 = bf16[16,4]{1,0} convolution(%param.1, %param.1), dim_labels=bf_io->bf
}

ENTRY %main.4 (p.0: f32[4,8]) -> (f32[4,8], f32[2]) {
  %p.0 = f32[4,8]{1,0:T(8,128)S(1)} parameter(0), sharding={replicated}
  %p.1 = bf16[16,8]{1,0} parameter(1)
  %fusion.1 = bf16[16,4]{1,0:T(8,128)(2,1)} fusion(%p.1), kind=kOutput, calls=%fused
  %copy-start.2 = (bf16[16,4]{1,0:S(1)}, bf16[16,4]{1,0}, u32[]{:S(2)}) copy-start(%fusion.1)
  %copy-done.2 = bf16[16,4]{1,0:S(1)} copy-done(%copy-start.2)
  %all-reduce.5 = (f32[4,8]{1,0}, f32[2]{0}) all-reduce(%p.0, %p.0), replica_groups=[1,4]<=[4], to_apply=%add
  %all-reduce-start.6 = f32[10]{0} all-reduce-start(%p.0), replica_groups=[1,4]<=[4], to_apply=%add
  %all-reduce-done.6 = f32[10]{0} all-reduce-done(%all-reduce-start.6)
  %all-gather.7 = f32[16]{0} all-gather(%p.0), dimensions={0}
  %all-gather-start.8 = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%p.0), dimensions={0}
  %all-gather-done.8 = f32[16,8]{1,0} all-gather-done(%all-gather-start.8)
  %custom-call.8 = (bf16[2]{0}, u8[64]{0}) custom-call(%p.1), custom_call_target="__cudnn$convForward"
  %custom-call.9 = bf16[2]{0} custom-call(%p.1), custom_call_target="Sharding"
  %fusion.10 = f32[2]{0} fusion(%p.0), kind=kLoop, calls=%add, backend_config={"window_config":{"estimated_cycles":"70"}}
  %fusion.11 = f32[2]{0} fusion(%p.0), kind=kLoop, calls=%add, backend_config={"window_config":{"estimated_cycles":"5"}}
  ROOT %tuple.9 = (f32[4,8]{1,0}, f32[2]{0}) tuple(%p.0, %p.0)
}
"""  # noqa: E501


def test_arrays_are_counted_in_their_own_size():
    assert array_bytes("f32[2,3]{1,0}") == 24
    assert array_bytes("bf16[256,56,56,192]{0,3,2,1:T(8,128)(2,1)S(1)}") == 2 * 256 * 56 * 56 * 192
    assert array_bytes("(f32[2]{0}, (pred[3]{0}, u8[5]{0}), s32[])") == 8 + 3 + 5 + 4
    assert array_bytes("f8e4m3fn[7]") == 7
    on_chip = "(f32[2]{0:T(128)}, f32[3]{0:T(128)S(1)}, f32[5])"
    assert (array_bytes(on_chip), array_bytes(on_chip, main_memory=True)) == (40, 28)
    assert array_bytes("token[]") == 0
    assert array_bytes("s4[6]") == 3
    with pytest.raises(UserError, match="'x7'"):
        array_bytes("x7[2]")


def test_collectives_are_counted_by_kind_with_the_bytes_of_their_results():
    assert find_collectives(PROGRAM) == (
        Collective("all-gather", 2, 64 + 16 * 8 * 4),
        Collective("all-reduce", 2, 4 * 8 * 4 + 2 * 4 + 10 * 4),
    )


def test_the_traffic_is_what_the_entry_reads_and_writes_in_main_memory():
    """%p.0 is in on-chip memory: `S(1)`."""
    fusion = 16 * 8 * 2 + 16 * 4 * 2
    copy = 16 * 4 * 2
    reductions = (128 + 8) + 40
    rest = 64 + (128 + 512) + (4 + 64 + 256) + (4 + 256) + 2 * 8
    assert count_traffic(PROGRAM) == fusion + copy + reductions + rest


LOOP = """HloModule jit_loop

%body.1 (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  ROOT %negate.1 = f32[100]{0} negate(%p)
}

%condition.1 (p: f32[100]) -> pred[] {
  %p = f32[100]{0} parameter(0)
  ROOT %constant.1 = pred[] constant(true)
}

ENTRY %main (p: f32[400]) -> f32[400] {
  %p = f32[400]{0:T(512)} parameter(0)
  %slice-start = ((f32[400]{0:T(512)}), f32[100]{0:T(512)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:100]}
  %slice-done = f32[100]{0:T(512)S(1)} slice-done(%slice-start)
  %while.1 = f32[100]{0} while(%slice-done), condition=%condition.1, body=%body.1, backend_config={"known_trip_count":{"n":"7"}}
  %copy-start = (f32[100]{0:T(512)}, f32[100]{0:T(512)S(1)}, u32[]{:S(2)}) copy-start(%slice-done)
  ROOT %copy-done = f32[100]{0:T(512)} copy-done(%copy-start)
}
"""  # noqa: E501


def test_a_copied_piece_counts_once_and_a_loops_body_as_often_as_it_runs():
    piece, turn = 400 + 4, 2 * 400  # the 4 bytes are the copy's context
    assert count_traffic(LOOP) == piece + 7 * turn + 400
    unknown = LOOP.replace(', backend_config={"known_trip_count":{"n":"7"}}', "")
    assert count_traffic(unknown) == piece + turn + 400


def test_fusions_products_and_library_calls_are_counted():
    assert count_operations(PROGRAM) == (3, 2)
    assert count_operations(PROGRAM + "  %dot.1 = f32[2,2]{1,0} dot(%p.0, %p.0), x\n") == (3, 3)


def test_estimated_cycles_are_summed():
    assert sum_cycles(PROGRAM) == 75


def test_donated_arguments_are_counted():
    assert count_donated(PROGRAM) == 2


def test_a_program_compiled_here_is_read_too():
    compiled = (
        jax.jit(lambda state, x: (state + x @ x, jnp.sum(x)), donate_argnums=0)
        .lower(*(jax.ShapeDtypeStruct((8, 8), np.float32),) * 2)
        .compile()
    )
    text = compiled.as_text()
    assert count_donated(text) == 1
    assert find_collectives(text) == ()
    assert count_traffic(text) >= 3 * 8 * 8 * 4
