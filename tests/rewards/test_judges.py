"""TOPReward, RoboReward and Robometer against torch computations of the same definitions."""

import dataclasses
import functools
import gc
import json
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import transformers

import lrm_jax
from lrm_jax.benchmarks import peers
from lrm_jax.episodes.video import read_video
from lrm_jax.jobs.judge import judge_inputs
from lrm_jax.report.video import encode_mp4
from lrm_jax.rewards import judges
from lrm_jax.rewards.judges import forward, paths, prompts
from lrm_jax.rewards.judges.robometer import TOKEN
from lrm_jax.rewards.layout import answer_tokens
from lrm_jax.rewards.model import NANO_FOLDER
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run.errors import UserError

TASKS = ["put the red cube on the blue plate", "open the drawer"]
SIDE = 64  # 4 x 4 patches: four tokens a picture
START, END = "<|vision_start|>", "<|vision_end|>"
# float32 sums in another order: some ulp of log-probabilities around -12 (1e-6 each), over about
# ten layers' worth of them; as in test_scoring.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiling dominates these tests, and LLVM's optimisation is not what they test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_encode", "_log_probabilities", "_states"):
            inner = getattr(forward, name).__wrapped__
            options = {"xla_backend_optimization_level": 0}
            quick = jax.jit(inner, static_argnums=0, compiler_options=options)
            patch.setattr(forward, name, quick)
        yield


@pytest.fixture(scope="module")
def tokenizer():
    """lrm-nano's small vocabulary with a token for videos, and Robometer's."""
    made = Tokenizer.from_folder(NANO_FOLDER)
    made.inner.add_special_tokens(["<|video_pad|>", TOKEN])
    return made


@pytest.fixture(scope="module")
def peer(tokenizer, tmp_path_factory):
    """(folder, transformers' model) of one random network."""
    folder = tmp_path_factory.mktemp("judge")
    tiny = peers.SIZES["tiny"]
    config = dataclasses.replace(
        tiny,
        text_config=dataclasses.replace(tiny.text_config, vocab_size=tokenizer.size + 3),
        **{
            f"{field}_token_id": tokenizer.token_id(f"<|{token}|>")
            for field, token in (
                ("image", "image_pad"),
                ("video", "video_pad"),
                ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        },
    )
    hf = peers.random_peer(config, tokenizer, folder)
    with torch.no_grad():
        for value in hf.parameters():  # far from uniform answers
            value.mul_(3.0)
    hf.save_pretrained(folder)
    return folder, hf


@pytest.fixture(scope="module")
def videos():
    """uint8 [2, 6, 64, 64, 3]."""
    return np.random.default_rng(0).integers(0, 256, (2, 6, SIDE, SIDE, 3), np.uint8)


def patches_of(frames):
    """[patches, 3 * 2 * 16 * 16] float32 of two frames, by the video processor's own views."""
    x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    count = SIDE // 16
    x = x.view(1, 2, 3, count // 2, 2, 16, count // 2, 2, 16).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(count * count, -1)


def inputs_of(tokenizer, text, pixels, kind):
    """transformers' inputs of one row, whose pictures stand in `text` already."""
    ids = torch.tensor([tokenizer.encode(text)[0]])
    pad = tokenizer.token_id(f"<|{kind}_pad|>")
    video = kind == "video"
    grids = [[1, 4, 4]] * len(pixels) if not video else [[len(pixels), 4, 4]]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == pad).long() * (2 if video else 1),
        "pixel_values_videos" if video else "pixel_values": torch.cat(pixels),
        "video_grid_thw" if video else "image_grid_thw": torch.tensor(grids),
    }


def shown(end, most):
    """The frames up to `end` that a window of `most` shows."""
    if end + 1 <= most:
        return list(range(end + 1))
    return [int(i) for i in np.linspace(0, end, most)]


def video_text(frames, fps):
    """Qwen3-VL's text of a video, by transformers' own timestamps."""
    stamps = transformers.Qwen3VLProcessor._calculate_timestamps(None, list(frames), fps, 2)
    return "".join(f"<{t:.1f} seconds>{START}{'<|video_pad|>' * 4}{END}" for t in stamps)


def video_row(tokenizer, prompt, task, video, end, most, fps):
    """(text before the answer, pixels) of a window."""
    frames = shown(end, most)
    text = prompt.partition("<answer>")[0].replace("<task>", task)
    text = text.replace("<video>", video_text(frames, fps))
    frames += frames[-1:] * (len(frames) % 2)
    pixels = [patches_of(video[[a, b]]) for a, b in zip(frames[::2], frames[1::2], strict=True)]
    return text, pixels


def log_p(hf, tokenizer, text, answers, pixels):
    """log P of each answer's tokens behind `text`, float64: one answer of some tokens, or several
    of one."""
    given = inputs_of(tokenizer, text + answers[0], pixels, "video")
    length = len(tokenizer.encode(text)[0])
    tails = [tokenizer.encode(text + answer)[0][length:] for answer in answers]
    assert len(answers) == 1 or {len(t) for t in tails} == {1}
    with torch.no_grad():
        logits = hf(**given, logits_to_keep=len(tails[0]) + 1).logits[0, :-1].double()
    p = torch.log_softmax(logits, -1)
    return [float(p[torch.arange(len(tail)), tail].sum()) for tail in tails]


def test_topreward(peer, tokenizer, videos):
    """Windows of two videos, even, odd and thinned out, against log P(" True") in torch."""
    folder, hf = peer
    judge = lrm_jax.load_judge("topreward", folder, max_frames=4, low=-20.0, high=-5.0)
    got = judge.score(videos, TASKS, fps=4.0)
    assert got.value.shape == got.raw.shape == (2, 6) and got.valid.all()
    for b, end in ((0, 0), (0, 1), (0, 2), (1, 3), (1, 5)):
        text, pixels = video_row(tokenizer, judge.prompt, TASKS[b], videos[b], end, 4, 4.0)
        (want,) = log_p(hf, tokenizer, text, [" True"], pixels)
        np.testing.assert_allclose(got.raw[b, end], want, atol=TOLERANCE)
        np.testing.assert_allclose(got.value[b, end], np.clip((want + 20) / 15, 0, 1), atol=1e-5)
    assert np.ptp(got.raw) > 0.05
    one = judge.score(videos[1], TASKS[1], at=[-1, 2], fps=4.0)
    np.testing.assert_allclose(one.raw, got.raw[1, [5, 2]], atol=TOLERANCE)
    late = judge.score(videos[1], TASKS[1], at=[-1], fps=1.0)
    assert abs(late.raw - got.raw[1, 5]) > TOLERANCE


def test_roboreward(peer, tokenizer, videos):
    """The five answers' distribution against teacher forcing; the likeliest, and the mean."""
    folder, hf = peer
    judge = lrm_jax.load_judge("roboreward", folder)
    got = judge.score(videos, TASKS, at=[0, 4])
    for b in range(2):
        for i, end in enumerate((0, 4)):
            text, pixels = video_row(tokenizer, judge.prompt, TASKS[b], videos[b], end, 16, 1.0)
            logs = log_p(hf, tokenizer, text, "12345", pixels)
            p = np.exp(logs - np.logaddexp.reduce(logs))
            np.testing.assert_allclose(got.distribution[b, i], p, atol=TOLERANCE)
            assert got.raw[b, i] == 1 + p.argmax() and got.value[b, i] == p.argmax() / 4
    mean = lrm_jax.load_judge("roboreward", folder, expectation=True).score(videos, TASKS, at=[4])
    want = got.distribution[:, 1:] @ np.arange(5) / 4
    np.testing.assert_allclose(mean.value, want, atol=TOLERANCE)
    assert np.ptp(got.distribution[..., 0]) > 1e-3


class Head(torch.nn.Module):
    """Robometer's progress head and frame pooling, with its names for the weights."""

    def __init__(self, width, middle, bins):
        super().__init__()
        self.progress_head = torch.nn.Sequential(
            torch.nn.Linear(width, middle),
            torch.nn.LayerNorm(middle),
            torch.nn.SiLU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(middle, bins),
        )
        self.frame_pool_attn = torch.nn.Linear(width, 1, bias=False)
        self.success_head = torch.nn.Linear(width, 1)


@pytest.fixture(scope="module")
def robometer(peer, tokenizer, tmp_path_factory):
    """(folder of a checkpoint with a head, without a language head; the head)."""
    torch.manual_seed(5)
    folder = shutil.copytree(peer[0], tmp_path_factory.mktemp("meter") / "checkpoint")
    width = peer[1].config.text_config.hidden_size
    head = Head(width, 24, 10).eval()
    with torch.no_grad():
        for value in head.parameters():
            value.copy_(torch.randn_like(value) * (1.0 if value.ndim == 1 else 0.5))
    tensors = {k: v for k, v in peer[1].state_dict().items() if k != "lm_head.weight"}
    tensors |= head.state_dict()
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in tensors.items()},
                                folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    return folder, head


@pytest.fixture(scope="module")
def torch_states(peer, tokenizer, videos):
    """(last hidden states [S, D], token ids [S]) of the window of three frames up to `end`."""

    @functools.cache
    def run(prompt, b, end, token):
        text, frames = prompt.replace("<task>", TASKS[b]).removesuffix("<video>"), shown(end, 3)
        for number, _ in enumerate(frames, 1):
            text += f"Picture {number}: {START}{'<|image_pad|>' * 4}{END}{TOKEN if token else ''}"
        pixels = [patches_of(videos[b, [f, f]]) for f in frames]
        given = inputs_of(tokenizer, text, pixels, "image")
        with torch.no_grad():
            states = peer[1].model(**given).last_hidden_state[0]
        return states, given["input_ids"][0]

    return run


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"frame_pooling": "attention", "frame_pooling_attn_temperature": 0.5}},
        {"model": {"frame_pooling": "boundary"}},
        {"data": {"use_per_frame_progress_token": True}},
        None,
    ],
)
def test_robometer(peer, tokenizer, robometer, videos, tmp_path, torch_states, settings):
    folder, head = robometer
    if settings is not None:
        folder = shutil.copytree(folder, tmp_path / "copy")
        (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    judge = lrm_jax.load_judge("robometer", folder, max_frames=3)
    ends = [0, 2, 5]  # growing, full, thinned out
    got = judge.score(videos, TASKS, at=ends)
    model = (settings or {}).get("model", {})
    for b in range(2):
        for i, end in enumerate(ends):
            states, ids = torch_states(judge.prompt, b, end, bool((settings or {}).get("data")))
            if (settings or {}).get("data"):
                x = states[ids == tokenizer.token_id(TOKEN)][-1]
            else:
                last = states[torch.nonzero(ids == tokenizer.token_id("<|image_pad|>"))[-4:, 0]]
                kind = model.get("frame_pooling", "mean")
                if kind == "attention":
                    weight = torch.softmax(head.frame_pool_attn(last)[:, 0] / 0.5, 0)
                    x = (weight[:, None] * last).sum(0)
                else:
                    x = last[-1] if kind == "boundary" else last.mean(0)
            with torch.no_grad():
                p = torch.softmax(head.progress_head(x), -1).numpy()
            bins = np.linspace(0, 1, 10)
            # States are of order one; the head's weights add up some tens of them.
            np.testing.assert_allclose(got.distribution[b, i], p, atol=TOLERANCE)
            np.testing.assert_allclose(got.value[b, i], p @ bins, atol=TOLERANCE)
            np.testing.assert_allclose(got.raw[b, i], p.argmax() / 9, atol=1e-6)
    assert got.valid.all() and np.ptp(got.value) > 1e-3


def test_sharing_and_micro_batches_change_nothing(peer, videos, monkeypatch):
    """All windows in one row, and each alone in calls of one; fewer tokens where they share."""
    judge = lrm_jax.load_judge("topreward", peer[0])
    wide = judge.score(videos[0], TASKS[0])
    lengths = []
    merge = paths.merge
    for limit in (None, 1):

        def counted(asked, config, grid, limit=limit):
            rows = merge(asked, config, grid, limit)
            lengths.append((rows.picture >= 0).sum())
            return rows

        monkeypatch.setattr("lrm_jax.rewards.judges.judge.merge", counted)
        small = lrm_jax.load_judge("topreward", peer[0], memory_bytes=1 if limit else 64 << 20)
        got = small.score(videos[0], TASKS[0])
        np.testing.assert_allclose(got.raw, wide.raw, atol=TOLERANCE)
    # Of 6 windows: 1 + 1 + 2 + 2 + 3 + 3 temporal patches, 6 of them different.
    assert lengths == [6 * 4, 12 * 4]


def test_other_sentences_use_the_same_program(peer, videos):
    judge = lrm_jax.load_judge("topreward", peer[0])
    judge.score(videos[0], TASKS[0])
    gc.collect()  # entries of models that are gone leave the caches now, not below
    before = forward._log_probabilities._cache_size(), forward._encode._cache_size()
    judge.score(videos[1], "put the green cube on the red plate")
    assert (forward._log_probabilities._cache_size(), forward._encode._cache_size()) == before


def test_frames_are_resized_as_the_checkpoints_processor_does(peer, videos, tmp_path):
    folder = shutil.copytree(peer[0], tmp_path / "copy")
    settings = {"size": {"shortest_edge": 4 * SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    judge = lrm_jax.load_judge("topreward", folder, max_frames=4)
    big = videos[0].repeat(2, axis=1).repeat(2, axis=2)
    assert judge.size_of(2 * SIDE, 2 * SIDE) == (SIDE, SIDE)
    got = judge.score(big, TASKS[0], at=[2])
    want = judge.score(lrm_jax.qwen3_vl.resize.bicubic(big, (SIDE, SIDE)), TASKS[0], at=[2])
    np.testing.assert_allclose(got.raw, want.raw, atol=TOLERANCE)


def test_a_number_that_is_not_finite_is_invalid(peer, videos):
    judge = lrm_jax.load_judge("topreward", peer[0])
    judge.variables["params"]["embed_tokens"] = judge.variables["params"]["embed_tokens"] * np.nan
    got = judge.score(videos[0, :2], TASKS[0])
    assert not got.valid.any() and np.isnan(got.value).all() and np.isnan(got.raw).all()


def test_the_doors_files(peer, videos, tmp_path):
    """Two videos of one shape but other rates: each is told its own."""
    folder, _ = peer
    for i, fps in enumerate((4.0, 20.0)):
        (tmp_path / f"{i}.mp4").write_bytes(encode_mp4(videos[0], fps))
    judge = judges.load_judge("roboreward", folder)
    out = tmp_path / "out"
    done = judge_inputs(judge, folder, [tmp_path / "0.mp4", tmp_path / "1.mp4"], TASKS[0], out)
    assert done["inputs"] == 2 and done["frames"] == 12
    frames = read_video(tmp_path / "1.mp4").frames
    want = judge.score(frames, TASKS[0], fps=20.0)
    got = json.loads((out / "1" / "scores.json").read_text())
    assert got["judge"] == "roboreward" and got["n_frames"] == 6 and got["valid"] == [True] * 6
    np.testing.assert_allclose(got["value"], want.value, atol=1e-6)
    np.testing.assert_allclose(got["distribution"], want.distribution, atol=1e-6)
    other = json.loads((out / "0" / "scores.json").read_text())
    assert other["raw"] != got["raw"]
    table = pq.read_table(out / "1" / "scores.parquet").to_pydict()
    np.testing.assert_allclose(table["progress_sparse"], want.value, atol=1e-6)
    assert table["episode_index"] == [1] * 6
    for name in ("plot.png", "overlay.mp4", "manifest.json"):
        assert (out / "0" / name).stat().st_size > 0


def test_by_trajectory():
    got = judges.by_trajectory([[-8.0, -6.0, np.nan, -4.0], [-5.0] * 4])
    np.testing.assert_allclose(got, [[0, 0.5, np.nan, 1], [np.nan] * 4])


def test_prompts_from_a_file(peer, tmp_path):
    wording = prompts.OURS["roboreward"].replace("robot", "machine")
    (tmp_path / "p.json").write_text(json.dumps({"judges": {"roboreward": wording}}))
    judge = lrm_jax.load_judge("roboreward", peer[0], prompts=tmp_path / "p.json")
    assert judge.prompt == wording
    with pytest.raises(UserError, match=r"p.json: it has no prompt of topreward"):
        lrm_jax.load_judge("topreward", peer[0], prompts=tmp_path / "p.json")


@pytest.mark.parametrize(
    "judge, prompt, message",
    [
        ("topreward", "<task><answer>", "<video> once"),
        ("topreward", "<video><task>", "<answer> once"),
        ("topreward", "<video> <answer><task>", "nothing but text"),
        ("topreward", "<task><video><answer>", "between <video> and <answer>"),
        ("robometer", "<video> <answer>", "<answer> nowhere"),
    ],
)
def test_wrong_prompts(judge, prompt, message):
    with pytest.raises(UserError, match=message):
        prompts.cut(prompt, judge, judge != "robometer")


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("toprewards", {}, "did you mean 'topreward'"),
        ("topreward", {"max_frame": 3}, "did you mean 'max_frames'"),
        ("topreward", {"max_frames": 0}, "max_frames is 0"),
        ("topreward", {"fps": 0}, "fps is 0"),
        ("topreward", {"low": -5.0}, "must be below high"),
        ("topreward", {"adapter": "nothing"}, "no such folder"),
        ("robometer", {}, "no tensor progress_head.0.weight"),
    ],
)
def test_wrong_settings(peer, name, settings, message):
    with pytest.raises(UserError, match=message):
        lrm_jax.load_judge(name, peer[0], **settings)


def test_wrong_settings_of_robometer(robometer, tmp_path):
    with pytest.raises(UserError, match="pooling 'max'"):
        lrm_jax.load_judge("robometer", robometer[0], pooling="max")
    folder = shutil.copytree(robometer[0], tmp_path / "copy")
    for text in ("model: [", "model: 3"):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config.yaml: no settings"):
            lrm_jax.load_judge("robometer", folder)
    (folder / "config.yaml").unlink()
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["progress_head.1.bias"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="do not fit together"):
        lrm_jax.load_judge("robometer", folder, pooling="mean")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frames": np.zeros((2, SIDE, SIDE, 3), np.float32)}, "uint8"),
        ({"task": " "}, "task is empty"),
        ({"task": TASKS * 2}, "1 videos but 4 tasks"),
        ({"at": [6]}, "no frame 6"),
        ({"at": []}, "at least one"),
        ({"fps": -1.0}, "fps is -1"),
    ],
)
def test_wrong_videos(peer, videos, change, message):
    judge = lrm_jax.load_judge("topreward", peer[0])
    arguments = {"frames": videos[0], "task": TASKS[0]} | change
    with pytest.raises(UserError, match=message):
        judge.score(**arguments)


def test_qwens_vocabulary_reads_the_published_tokens():
    """TOPReward reads one token, " True"; RoboReward tells its answers by one token each."""
    qwen = peers.qwen_tokenizer()
    assert [len(qwen.encode(text)[0]) for text in (" True", *"12345")] == [1] * 6
    _, tails = answer_tokens(qwen, "assistant\nANSWER: ", tuple("12345"), "<|im_end|>")
    assert [len(tail) for tail in tails] == [1] * 5
