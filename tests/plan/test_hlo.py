"""Reading what a compiler says: collectives, loops, refusals."""

import jax

from arch_jax.plan.hlo import collectives, refusal, too_large

#: A program as the TPU's compiler writes it, cut to what is read: a loop over steps of unknown length; in its body a
#: scan over 12 layers, one of 5 that says so, a collective in two pieces, one that is begun and done, and a search.
TEXT = """HloModule jit_program, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%pieces (p: bf16[8,16]) -> bf16[8,64] {
  %all-gather.7 = bf16[8,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={1}
}

%pieces.clone (p: bf16[8,16]) -> bf16[8,64] {
  %all-gather.8 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, dimensions={1}
}

%layers (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %all-reduce.1 = (f32[4,4]{1,0}, bf16[2]{0}) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1}}, to_apply=%sum
}

%layers_end (p: (s32[], f32[4,4])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(12)
  %p = (s32[]{:T(128)}, f32[4,4]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.9), direction=LT, metadata={op_name="while/cond/lt"}
}

%known (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %reduce-scatter.3 = f32[10]{0} reduce-scatter(%x), channel_id=3, replica_groups={{0,1}}, to_apply=%sum
}

%known_end (p: (s32[], f32[4,4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%search (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %collective-permute.4 = f32[100]{0} collective-permute(%x), channel_id=4, source_target_pairs={{0,1}}
}

%step (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %fusion.1 = bf16[8,64] fusion(%x), kind=kCustom, calls=%pieces
  %fusion.2 = bf16[8,64] fusion(%x), kind=kCustom, calls=%pieces.clone
  %while.1 = (s32[], f32[4,4]) while(%x), condition=%layers_end, body=%layers
  %while.2 = (s32[], f32[4]) while(%x), condition=%known_end, body=%known, backend_config={"known_trip_count":{"n":"5"}}
  %while.3 = (s32[], f32[4,4]) while(%x), condition=%known_end, body=%search
  %all-gather-start.5 = (f32[3]{0}, f32[6]{0}) all-gather-start(%x), channel_id=5, dimensions={0}
  %all-gather-done.5 = f32[6]{0} all-gather-done(%all-gather-start.5)
}

%step_end (p: (s32[], f32[4,4])) -> pred[] {
  %n = s32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[4,4]) -> f32[4,4] {
  %while.0 = (s32[], f32[4,4]) while(%p), condition=%step_end, body=%step
}
"""


def test_collectives_of_a_step():
    found = {row["kind"]: (row["count"], row["bytes"], row["at_least"]) for row in collectives(TEXT)}
    assert found == {
        # One in two pieces, 8 x 64 of 2 bytes; and one begun and done, of 6 float32.
        "all-gather": (2, 2 * 8 * 64 + 4 * 6, False),
        "all-reduce": (12, 12 * (4 * 16 + 2 * 2), False),
        "reduce-scatter": (5, 5 * 40, False),
        "collective-permute": (1, 400, True),
    }


def test_no_collectives():
    assert (
        collectives("HloModule one\n\nENTRY %main (p: f32[4]) -> f32[4] {\n  ROOT %neg = f32[4] negate(%p)\n}\n") == []
    )


FULL = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (31.95G) exceeds "
    "available HBM (15.75G)."
)


def test_out_of_memory_is_understood():
    assert too_large(FULL) == (int(31.95 * 2**30), int(15.75 * 2**30))
    older = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.13G of 15.75G hbm. Exceeded by 4.38G."
    assert too_large(older) == (int(20.13 * 2**30), int(15.75 * 2**30))
    assert too_large("INVALID_ARGUMENT: no") is None
    said = refusal(RuntimeError(FULL))
    assert said["needed"] > said["available"]
    assert "31.95 GiB" in said["reason"]
    assert "15.75 GiB" in said["reason"]


def test_any_other_refusal_is_its_first_sentence():
    said = refusal(jax.errors.JaxRuntimeError("UNIMPLEMENTED: no such thing on this chip. A long story\nfollows."))
    assert said == {
        "reason": "the compiler says: UNIMPLEMENTED: no such thing on this chip",
        "needed": None,
        "available": None,
    }
    assert refusal(ValueError("no such block shape"))["reason"] == "the compiler says: ValueError: no such block shape"
