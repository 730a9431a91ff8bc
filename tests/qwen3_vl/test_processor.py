"""Real prompts through transformers' own Qwen3-VL processor (Qwen's vocabulary, images of any size,
videos with timestamps), into both networks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lrm_jax.benchmarks import peers
from lrm_jax.benchmarks.parity_cases import make_pair

LOGITS = 1e-5  # of their scale: order of float32 sums, as in test_oracle.py
# Turns as Qwen writes them; a user's content holds text, images and videos in any order.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}"
    "{% else %}<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


class Videos:
    """What transformers' video processor does to frames that need no sampling, by its image
    processor; its own needs torchvision, which has no build for the torch of these tests."""

    merge_size, temporal_patch_size = 2, 2
    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, images):
        self.images = images

    def __call__(self, videos, video_metadata, **_):
        pixels, grids = [], []
        for frames in videos:
            frames = [*frames, *frames[-1:]] if len(frames) % 2 else list(frames)
            seen = self.images(frames, return_tensors="np")
            (grid,) = {tuple(g) for g in seen["image_grid_thw"].tolist()}
            # [frame, patch, channel, time, ...]: it shows each frame twice; of each one half.
            patches = seen["pixel_values"].reshape(len(frames), -1, 3, 2, 16 * 16)
            pairs = np.stack([patches[::2, :, :, 0], patches[1::2, :, :, 1]], axis=3)
            pixels.append(pairs.reshape(-1, 3 * 2 * 16 * 16))
            grids.append((len(frames) // 2, *grid[1:]))
        arrays = (np.concatenate(pixels), np.array(grids))
        return dict(zip(self.model_input_names, arrays, strict=True), video_metadata=video_metadata)


class Processor(transformers.Qwen3VLProcessor):
    """transformers' own, which otherwise refuses to be made of `Videos`."""

    def check_argument_for_proper_class(self, *_):
        pass


@pytest.fixture(scope="module")
def processor():
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=peers.qwen_tokenizer().inner, pad_token="<|endoftext|>"
    )
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96},
        patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return Processor(images, tokenizer, Videos(images), chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    config = transformers.Qwen3VLConfig(**peers.SIZES["tiny"].to_hf())
    return make_pair(tmp_path_factory.mktemp("vocabulary"), config, seed=4)


def picture(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def asked(processor, rows, side):
    """Processor outputs of rows of content: strings, images [H,W,3], (video [T,H,W,3], fps)."""
    texts, shown = [], {"image": [], "video": []}
    for row in rows:
        content = []
        for piece in row:
            if isinstance(piece, str):
                content.append({"type": "text", "text": piece})
            else:
                kind = "video" if isinstance(piece, tuple) else "image"
                content.append({"type": kind})
                shown[kind].append(piece)
        texts.append(
            processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        )
    facts = [
        SimpleNamespace(fps=fps, frames_indices=list(range(len(video))))
        for video, fps in shown["video"]
    ]
    out = processor(
        text=texts, images=shown["image"] or None,
        videos=[video for video, _ in shown["video"]] or None, video_metadata=facts,
        padding=True, padding_side=side, return_tensors="np",
    )  # fmt: skip
    return {k: np.asarray(v) for k, v in out.items() if k != "video_metadata"}


TASK = "Is the robot done? The task: put the red cube on the blue plate."
ROWS = {
    "no image": [["How far is the task “öffne die Schublade” along, from 0.0 to 1.0?"], [TASK]],
    "one image": [["Now: ", picture(64, 96, 0), TASK]],
    "several sizes in one row": [
        ["First: ", picture(64, 64, 1), " before: ", picture(120, 51, 2), " now: ",
         picture(40, 90, 3), TASK]
    ],
    "rows of one and two images": [
        [picture(64, 64, 4), TASK],
        ["A: ", picture(33, 80, 5), " B: ", picture(80, 64, 6), " which is closer? " + TASK],
    ],
    "a video with timestamps": [
        ["Watch: ", (np.stack([picture(64, 96, 10 + i) for i in range(6)]), 2.0), TASK]
    ],
    "a video and an image": [
        ["Goal: ", picture(64, 64, 7), TASK,
         (np.stack([picture(48, 64, 20 + i) for i in range(4)]), 5.0)],
        [TASK],
    ],
}  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", ROWS)
def test_logits_of_real_prompts(pair, processor, case, side):
    batch = asked(processor, ROWS[case], side)
    if case == "a video with timestamps":
        text = processor.tokenizer.decode(batch["input_ids"][0])
        assert batch["video_grid_thw"][0, 0] == 3
        # Frames 0 and 1 at 2 Hz: their mean is 0.25 s.
        assert "<0.2 seconds>" in text and "<2.2 seconds>" in text
    assert pair.error(batch) < LOGITS


@pytest.mark.parametrize("case", ["rows of one and two images", "a video with timestamps"])
def test_greedy_tokens_of_real_prompts(pair, processor, case):
    batch = asked(processor, ROWS[case], "left")
    with torch.no_grad():
        given = {k: torch.from_numpy(v) for k, v in batch.items()}
        theirs = pair.hf.generate(**given, max_new_tokens=12, do_sample=False).numpy()
    ours = pair.ours.generate(**batch, max_new_tokens=12)
    np.testing.assert_array_equal(ours, theirs[:, batch["input_ids"].shape[1] :])
