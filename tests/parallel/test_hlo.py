"""The reader of compiled programs, on text in the compilers' own words with known counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from lrm_jax.parallel import hlo

# A loop of the CPU's compiler, whose turns it notes, around one all-gather; an all-reduce of a
# tuple; a permute in its two halves; one collective of one device, which moves nothing.
NOTED = """
HloModule jit_f, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %all-gather.1 = f32[32]{0} all-gather(%x), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(f)/layers/dot"}
  ROOT %t = (s32[], f32[4]{0}) tuple(%p, %x)
}

%cond (p.1: (s32[], f32[4])) -> pred[] {
  %p.1 = (s32[], f32[4]{0}) parameter(0)
  ROOT %lt = pred[] compare(%p.1, %p.1), direction=LT
}

%helper (h: f32[4]) -> f32[4] {
  %h = f32[4]{0} parameter(0)
  ROOT %swap = f32[4]{0} all-to-all(%h), channel_id=5, replica_groups=[4,2]<=[8], dimensions={0}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %i = (s32[], f32[4]{0}) tuple(%a, %a)
  %w = (s32[], /*index=1*/f32[4]{0}) while(%i), condition=%cond, body=%body, metadata={op_name="jit(f)/layers/while"}, backend_config={"known_trip_count":{"n":"36"}}
  %ar = (bf16[8,2]{1,0}, f32[4]{0}) all-reduce(%a, %a), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %cp = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%a), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %cpd = f32[4]{0} collective-permute-done(%cp)
  %kernel = f32[4]{0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUw=",
"xprof_metadata":"{\\"block_q\\": 384}"
}}, metadata={op_name="jit(f)/splash"}
  %called = f32[4]{0} call(%a), to_apply=%helper
  %alone = f32[4]{0} all-reduce(%a), channel_id=4, replica_groups={{0},{1}}, to_apply=%add
  ROOT %r = f32[4]{0} copy(%a)
}
"""  # noqa: E501

# The TPU's: a loop counter that shows as constants (0, 2, 4, 6 below 8), inside a loop of 33 turns
# one of whose gathers is a chain of fusions, one link of it in the inner loop; a reduce-scatter as
# a fusion.
CHAINED = """
HloModule jit_g

%link (q: bf16[2]) -> bf16[32] {
  %q = bf16[2]{0} parameter(0)
  ROOT %ag.1 = bf16[32]{0:T(8,128)(2,1)} all-gather(%q), channel_id=7, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="3"}
}

%inner (c: (u32[], bf16[2])) -> (u32[], bf16[2]) {
  %c = (u32[]{:T(128)}, bf16[2]{0}) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %k = u32[]{:T(128)} get-tuple-element(%c), index=0
  %v = bf16[2]{0} get-tuple-element(%c), index=1
  %next = u32[]{:T(128)} add(%k, %two)
  %cps = (bf16[2]{0}, bf16[2]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%v), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %f = bf16[32]{0} fusion(%v), kind=kCustom, calls=%link
  ROOT %o = (u32[]{:T(128)}, bf16[2]{0}) tuple(%next, %v)
}

%inner_cond (c.1: (u32[], bf16[2])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8)
  %c.1 = (u32[]{:T(128)}, bf16[2]{0}) parameter(0)
  %k.1 = u32[]{:T(128)} get-tuple-element(%c.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%k.1, %eight), direction=LT
}

%outer (d: (s32[], bf16[2])) -> (s32[], bf16[2]) {
  %d = (s32[]{:T(128)}, bf16[2]{0}) parameter(0)
  %zero = u32[]{:T(128)} constant(0)
  %dv = bf16[2]{0} get-tuple-element(%d), index=1
  %start = bf16[32]{0} fusion(%dv), kind=kCustom, calls=%link
  %in = (u32[]{:T(128)}, bf16[2]{0}) tuple(%zero, %dv)
  %loop = (u32[]{:T(128)}, bf16[2]{0}) while(%in), condition=%inner_cond, body=%inner
  ROOT %out = (s32[]{:T(128)}, bf16[2]{0}) tuple(%d, %dv)
}

%outer_cond (d.1: (s32[], bf16[2])) -> pred[] {
  %n = s32[]{:T(128)} constant(33)
  %d.1 = (s32[]{:T(128)}, bf16[2]{0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%d.1), index=0
  ROOT %l = pred[]{:T(512)} compare(%j, %n), direction=LT
}

%all-reduce-scatter.2 (s: f32[64]) -> f32[4] {
  %s = f32[64]{0} parameter(0)
  %sum = f32[64]{0} all-reduce(%s), channel_id=11, replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %cut = f32[4]{0} dynamic-slice(%sum, %s), dynamic_slice_sizes={4}
}

ENTRY %main (a: f32[64]) -> f32[4] {
  %a = f32[64]{0} parameter(0)
  %z = s32[]{:T(128)} constant(0)
  %t = (s32[]{:T(128)}, bf16[2]{0}) tuple(%z, %a)
  %w = (s32[]{:T(128)}, bf16[2]{0}) while(%t), condition=%outer_cond, body=%outer
  ROOT %rs = f32[4]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.2
}
"""  # noqa: E501


def test_turns_and_bytes_of_every_kind():
    found = hlo.collectives(NOTED, 8)
    assert hlo.by_kind(found) == {
        "all-gather": {"count": 36, "bytes": 36 * 32 * 4 * 7 // 8},
        "all-reduce": {"count": 1, "bytes": 2 * (8 * 2 * 2 + 4 * 4) * 3 // 4},
        "collective-permute": {"count": 1, "bytes": 16},
        "all-to-all": {"count": 1, "bytes": 8},
    }
    gather = next(c for c in found if c.kind == "all-gather")
    assert (gather.group, gather.source) == (8, "jit(f)/layers/dot")
    assert hlo.loops(NOTED) == [("jit(f)/layers/while", 36)]


def test_chains_count_once_and_counters_are_read():
    assert hlo.by_kind(hlo.collectives(CHAINED, 16)) == {
        "collective-permute": {"count": 33 * 4, "bytes": 33 * 4 * 4},
        "all-gather": {"count": 33, "bytes": 33 * 32 * 2 * 15 // 16},
        "reduce-scatter": {"count": 1, "bytes": 4 * 4 * 15},
    }
    assert sorted(turns for _, turns in hlo.loops(CHAINED)) == [4, 33]


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("{}", 64),
        ("[4,16]<=[64]", 16),
        ("[32,2]<=[2,32]T(1,0)", 2),
        ("mesh['axis_0'=16,'axis_1'=4] {'axis_0','axis_1'}", 64),
        ("mesh['axis_0'=16,'axis_1'=1,'axis_2'=4], device_ids=([4,16]T(1,0)) {'axis_0'}", 16),
        ("mesh['a'=16,'b'=4], device_ids=(0,2,1,3) {'b'}", 4),
        ("mesh['a'=16,'b'=4] {'a':(1)8}", 8),
    ],
)
def test_groups(groups, size):
    text = f"""
ENTRY %main (a: f32[64]) -> f32[64] {{
  ROOT %g = f32[64]{{0}} all-gather(%a), channel_id=1, replica_groups={groups}, dimensions={{0}}
}}
"""
    assert hlo.collectives(text, 64)[0].group == size


def test_groups_of_a_form_that_is_not_known():
    text = (
        "ENTRY %m (a: f32[4]) -> f32[4] {\n  ROOT %g = f32[4] all-gather(%a), replica_groups=<x>\n}"
    )
    with pytest.raises(ValueError, match="unknown form"):
        hlo.collectives(text, 8)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[2,3]{1,0}", 24),
        ("(bf16[5]{0:T(8,128)(2,1)S(1)}, s32[], pred[4])", 10 + 4 + 4),
        ("f8e4m3fn[3,2]", 6),
        ("s4[8]", 4),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_type(text, size):
    assert hlo.type_bytes(text) == size


def test_a_program_of_this_compiler():
    """A scan keeps its turns; a program on one device sends nothing."""

    def run(x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, jnp.ones((7, 4, 4)))[0]

    text = jax.jit(run).lower(jnp.ones((4, 4))).compile().as_text()
    assert 7 in [turns for _, turns in hlo.loops(text)]
    assert hlo.collectives(text, 1) == []


def test_what_is_no_module():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing of the kind")
