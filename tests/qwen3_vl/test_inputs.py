"""Patches, tables, positions, packing."""

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lrm_jax.benchmarks.parity_cases import (
    END,
    IMAGE,
    START,
    VIDEO,
    batch_of,
    hf_config,
    relative,
    tensors,
)
from lrm_jax.qwen3_vl import (
    Config,
    VisionConfig,
    VisionInputs,
    batching,
    fixed_grid,
    grid_of,
    inputs,
    patchify,
    rope_positions,
)
from lrm_jax.qwen3_vl.batching import bucket, pack

from .conftest import QUICK

CONFIG = Config.from_hf(hf_config().to_dict())


@pytest.mark.parametrize(
    "patch,time,merge,size", [(4, 2, 2, (24, 40)), (8, 1, 2, (64, 64)), (2, 3, 3, (12, 6))]
)
def test_patchify_equals_the_image_processor(patch, time, merge, size):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, *size, 3), np.uint8)
    processor = Qwen2VLImageProcessorPil(
        do_resize=False, patch_size=patch, temporal_patch_size=time, merge_size=merge,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    expected = processor(list(frames), return_tensors="np")
    vision = VisionConfig(patch_size=patch, temporal_patch_size=time, spatial_merge_size=merge)
    got = jax.jit(patchify, static_argnums=1)(frames, vision)
    assert [grid_of(vision, *size)] * 3 == [tuple(g) for g in expected["image_grid_thw"].tolist()]
    # Values up to 1 after at most three float32 roundings.
    np.testing.assert_allclose(
        got.reshape(-1, got.shape[-1]), expected["pixel_values"], rtol=0, atol=4e-7
    )


def test_fixed_camera_equals_processor_outputs(untied):
    """The road of the engine (fixed grid, tables shared) and of user input (padded) agree."""
    ours, frames = untied.ours, np.random.default_rng(1).integers(0, 256, (3, 24, 16, 3), np.uint8)
    batch = batch_of([[2, *[("image", 6, 4)] * 3, 1]])

    def encode(params, frames):
        given = VisionInputs(patchify(frames, ours.config), fixed_grid(ours.config, 24, 16))
        return given.patches, ours.model.apply({"params": params}, given, method="encode")

    patches, got = jax.jit(encode, compiler_options=QUICK)(ours.params, frames)
    batch["pixel_values"] = np.asarray(patches).reshape(-1, 96)
    with torch.no_grad():
        given = tensors(batch)
        out = untied.hf.model.get_image_features(given["pixel_values"], given["image_grid_thw"])
    assert relative(got.embeds, torch.stack(list(out.pooler_output)).numpy()) < 1e-5
    levels = torch.stack([torch.stack(list(level)) for level in out.deepstack_features])
    assert relative(got.deepstack, levels.numpy()) < 1e-5


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 8), st.integers(1, 3))
def test_tables_interpolate_as_torch_does(rows, columns, side, merge):
    rows, columns = rows * merge, columns * merge
    vision = VisionConfig(num_position_embeddings=side**2, spatial_merge_size=merge)
    table = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(
        table, (rows, columns), mode="bilinear", align_corners=True
    )[0].numpy()
    tables = inputs.grid_tables(vision, rows, columns)
    flat = table[0].reshape(3, -1).numpy()
    got = (flat[:, tables.pos_index[0]] * tables.pos_weight[0]).sum(-1)
    row, column = tables.place[0].T
    np.testing.assert_allclose(got, expected[:, row, column], atol=1e-5)
    assert len(set(zip(row.tolist(), column.tolist(), strict=True))) == rows * columns
    # Merge blocks are contiguous.
    blocks = np.stack([row // merge, column // merge], -1).reshape(-1, merge * merge, 2)
    assert (blocks == blocks[:, :1]).all()


PIECE = st.one_of(
    st.integers(1, 5),
    st.tuples(st.just("image"), st.sampled_from([2, 4, 6]), st.sampled_from([2, 4, 10])),
    st.tuples(st.just("video"), st.integers(1, 3), st.sampled_from([2, 4]), st.just(4)),
)


@pytest.fixture(scope="module")
def hf_index():
    with torch.device("meta"):
        return transformers.Qwen3VLForConditionalGeneration(hf_config()).model.get_rope_index


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.lists(PIECE, min_size=1, max_size=4), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
)
def test_positions_equal_transformers(hf_index, rows, side):
    batch = batch_of([[*row, 1] for row in rows], side)
    packed = pack(CONFIG, batch)
    given_ = {k: v for k, v in tensors(batch).items() if not k.startswith("pixel")}
    expected, deltas = hf_index(**given_)
    length = batch["input_ids"].shape[1]
    real = batch["attention_mask"] == 1
    got = packed.positions[:, : len(rows), :length]
    np.testing.assert_array_equal(got[:, real], expected.numpy()[:, real])
    lengths = real.sum(1)
    np.testing.assert_array_equal(packed.next_position[: len(rows)], lengths + deltas[:, 0].numpy())
    np.testing.assert_array_equal(packed.visual_index[: len(rows), :length] >= 0,
                                  np.isin(batch["input_ids"], [IMAGE, VIDEO]))  # fmt: skip


def test_rope_positions_by_hand():
    tokens = np.array([1, START, *[IMAGE] * 6, END, 2])
    positions, delta = rope_positions(tokens, [(4, 6)], CONFIG)
    np.testing.assert_array_equal(
        positions,
        [
            [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
            [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
            [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
        ],
    )
    assert delta == 7 - len(tokens)


@pytest.mark.parametrize(
    "tokens,grids",
    [
        ([1, IMAGE, IMAGE], [(2, 2)]),
        ([1, IMAGE], [(2, 4)]),
        ([1, IMAGE, 2, IMAGE], [(2, 4)]),
        ([1, 2], [(2, 2)]),
        ([IMAGE, VIDEO], [(2, 4)]),
        ([IMAGE], []),
    ],
)
def test_rope_positions_rejects_what_does_not_fit(tokens, grids):
    with pytest.raises(ValueError, match="image"):
        rope_positions(np.array(tokens), grids, CONFIG)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="multiples of 8"):
        fixed_grid(CONFIG, 24, 20)
    with pytest.raises(ValueError, match="channels"):
        patchify(np.zeros((1, 8, 8, 1), np.uint8), CONFIG)


@pytest.mark.parametrize(
    "change,match",
    [
        (lambda b: b.update(pixel_values=b["pixel_values"][:-1]), "patches"),
        (lambda b: b.update(pixel_values=b["pixel_values"][:, :-1]), "patches"),
        (lambda b: b.pop("pixel_values"), "go together"),
        (lambda b: b["attention_mask"].fill(0), "all zeros"),
        (lambda b: b["input_ids"].__setitem__((0, 4), 5), "image"),
        (lambda b: b["input_ids"].fill(5), "places 0"),
        (lambda b: b.update(attention_mask=b["attention_mask"][:, 1:]), "attention_mask"),
        (lambda b: b.update(input_features=np.zeros(3)), "input_features"),
        (lambda b: b["image_grid_thw"].__setitem__((0, slice(None)), (2, 3, 4)), "temporal"),
    ],
)
def test_pack_rejects_what_does_not_fit(change, match):
    batch = batch_of([[2, ("image", 6, 4), 3]])
    change(batch)
    with pytest.raises(ValueError, match=match):
        pack(CONFIG, batch)


@given(st.integers(0, 5000), st.sampled_from([1, 64]))
def test_buckets(size, smallest):
    padded = bucket(size, smallest)
    assert padded >= size and padded % smallest == 0 and bucket(padded, smallest) == padded
    assert padded == smallest or padded - size < max(smallest, size / 4)


def test_few_buckets():
    assert len({bucket(n, 64) for n in range(1, 16385)}) <= 36


def test_programs_of_arbitrary_batches_are_bounded():
    """Three hundred random batches have shapes from the short lists of `batching.sizes` alone, and
    fewer of them than `most_programs` allows."""
    config = Config.from_hf(hf_config().to_dict())
    rng, shapes = np.random.default_rng(0), set()
    for seed in range(300):
        rows = [
            [int(rng.integers(1, 150))]
            + [("image", *(2 * rng.integers(1, 12, 2))) for _ in range(rng.integers(0, 3))]
            for _ in range(rng.integers(1, 6))
        ]
        batch = pack(config, batch_of(rows, seed=seed))
        vision = () if batch.vision is None else batch.vision.patches.shape[:2]
        shapes.add((*batch.tokens.shape, *vision))
    assert {s[0] for s in shapes} <= set(batching.sizes(5))
    assert {s[1] for s in shapes} <= set(batching.sizes(150 + 2 * 123, 64))
    assert {s[2] for s in shapes if len(s) > 2} <= set(batching.sizes(10))
    assert {s[3] for s in shapes if len(s) > 2} <= set(batching.sizes(22 * 22, 64))
    assert len(shapes) <= batching.most_programs(config, 5, 396, 10, 484)
    # Doubling what may be sent adds four sizes, not as many again.
    assert len(batching.sizes(8192, 64)) == len(batching.sizes(4096, 64)) + 4
