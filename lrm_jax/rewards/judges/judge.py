"""What all judges share: videos and sentences in, a value for each frame out.

A judge looks at what the robot has done up to a frame (a growing window, thinned out where it is
longer than the judge takes) and gives one number. Each window is a token path (`paths`); windows of
a video share their beginnings, distinct temporal patches are encoded once, and everything runs in
micro-batches of few shapes.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.qwen3_vl import Config, Qwen3VL, grid_of, resize
from lrm_jax.rewards.engine import MEMORY_BYTES
from lrm_jax.rewards.given import checked_frames, tasks_of
from lrm_jax.rewards.judges import forward, prompts
from lrm_jax.rewards.judges.paths import Path, Picture, Rows, Writer, merge
from lrm_jax.rewards.layout import check_sentence
from lrm_jax.rewards.model import MAX_PIXELS
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run.errors import UserError


@flax.struct.dataclass
class Judged:
    """What a judge says of frames [...], T of a video or those that were asked for; numpy arrays.

    value: float32 [...] in [0, 1]; NaN where invalid. valid: bool [...], False where the network
    gave a number that is not finite. raw: float32 [...], what the value was mapped from, in the
    judge's own unit. distribution: float32 [..., A] over its answers or bins, None if it has none.
    """

    value: Any
    valid: Any
    raw: Any
    distribution: Any = None


@dataclasses.dataclass(frozen=True)
class Window:
    """One question: the video, its sentence, and which of the video's frames are shown."""

    video: int
    task: str
    frames: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Judge(abc.ABC):
    """A loaded judge.

    prompt: see `prompts`. max_frames: a longer window is thinned out to as many frames, evenly, its
    first and last among them. fps: frames per second of videos whose rate nobody gives.
    image_size: (height, width) that frames are resized to, pixels; None for the judge's own rule.
    bounds: of the checkpoint's processor, where it has one. memory_bytes: budget of a micro-batch.
    """

    config: Config
    model: Qwen3VL
    variables: Any
    tokenizer: Tokenizer
    prompt: str
    max_frames: int
    fps: float
    image_size: tuple[int, int] | None = None
    bounds: resize.PixelBounds | None = None
    memory_bytes: int = MEMORY_BYTES

    name = "judge"
    reads_answers = True

    def __post_init__(self):
        prompts.cut(self.prompt, self.name, self.reads_answers)
        if self.max_frames < 1:
            raise UserError(f"{self.name}: max_frames is {self.max_frames}, it must be at least 1")
        if not self.fps > 0:
            raise UserError(f"{self.name}: fps is {self.fps}: give frames per second, above 0")

    def score(
        self,
        frames: Any,
        task: str | Sequence[str],
        *,
        at: Sequence[int] | None = None,
        fps: float | None = None,
    ) -> Judged:
        """Judges each frame of one video, or of B, by what led up to it.

        Args:
          frames: uint8 [T, H, W, 3] or [B, T, H, W, 3].
          task: the sentence the robot was told; for B videos one sentence or B.
          at: the frames to judge, negative ones from the end; all by default. `[-1]` judges whole
            videos.
          fps: frames per second of the videos, for judges that are told the time.
        Returns:
          Judged of [T] or [B, T], or [A] or [B, A] with A frames in `at`.
        Raises:
          UserError: frames of another type or shape, an empty task, a frame that is not there.
        """
        frames = checked_frames(frames)
        single = frames.ndim == 4
        frames = frames[None] if single else frames
        count, time = frames.shape[:2]
        tasks = tasks_of(task, count)
        for one in tasks:
            check_sentence(one)
        ends = range(time) if at is None else list(at)
        if wrong := [e for e in ends if not -time <= e < time]:
            raise UserError(f"at: the videos have {time} frames, there is no frame {wrong[0]}")
        if not len(ends):
            raise UserError("at: name at least one frame")
        if fps is not None and not fps > 0:
            raise UserError(f"fps is {fps}: give frames per second, above 0")
        windows = [
            Window(b, tasks[b], _window(e % time + 1, self.max_frames))
            for b in range(count)
            for e in ends
        ]
        judged = self._judge(windows, frames, fps or self.fps)
        shape = (len(ends),) if single else (count, len(ends))
        return jax.tree.map(lambda x: np.asarray(x).reshape(*shape, *x.shape[1:]), judged)

    # -- what a judge adds ---------------------------------------------------------------------

    @abc.abstractmethod
    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """What frames are resized to where `image_size` does not say."""

    @abc.abstractmethod
    def clips_of(self, window: Window) -> list[tuple[int, ...]]:
        """The pictures of a window in order: for each the numbers of its frames."""

    @abc.abstractmethod
    def paths_of(
        self, writer: Writer, window: Window, numbers: list[int], fps: float
    ) -> list[Path]:
        """The token paths that ask about a window; `numbers` are its pictures' numbers."""

    @abc.abstractmethod
    def judge_rows(self, rows: Rows, features: Any, paths: Sequence[Sequence[Path]]) -> Judged:
        """What the rows say, for each window; `paths` are each window's, merged in order."""

    # -- the common road -----------------------------------------------------------------------

    def _judge(self, windows: Sequence[Window], frames: np.ndarray, fps: float) -> Judged:
        size = self.image_size or self.size_of(*frames.shape[2:4])
        try:
            grid = grid_of(self.config, *size)
        except ValueError as error:
            raise UserError(f"{self.name}: image_size: {error}") from error
        writer = Writer(self.tokenizer, self.config, grid)
        numbers: dict[tuple[int, ...], int] = {}
        time, paths = frames.shape[1], []
        for window in windows:
            clips = [tuple(window.video * time + f for f in c) for c in self.clips_of(window)]
            own = [numbers.setdefault(clip, len(numbers)) for clip in clips]
            paths.append(self.paths_of(writer, window, own, fps))
        rows = merge([p for own in paths for p in own], self.config, grid)
        shown = frames.reshape(-1, *frames.shape[2:])
        if shown.shape[1:3] != size:
            resized = resize.linear if self.bounds is None else resize.bicubic
            shown = jnp.concatenate([resized(video, size) for video in frames])
        features = forward.encode(
            self.model, self.variables, jnp.asarray(shown), np.array(list(numbers)),
            self.memory_bytes,
        )  # fmt: skip
        return self.judge_rows(rows, features, paths)

    def _log_probabilities(self, rows: Rows, features: Any) -> np.ndarray:
        """float32 [windows, answers], for judges with one path for each answer."""
        found = forward.log_probabilities(
            self.model, self.variables, rows, features, self.memory_bytes
        )
        return np.stack([found[row, candidates] for row, _, candidates in rows.places])


class VideoJudge(Judge):
    """A judge that is shown a video as Qwen3-VL takes one: two frames a temporal patch (the last
    one doubled where their number is odd), each patch behind its time in seconds, which is the mean
    of its frames' times.

    Our choices, where the published servers leave it to their libraries: a frame's time is its
    place in the whole video over fps, also where the window was thinned out; and all windows have
    the size that the video processor gives to one of max_frames frames, so that they share their
    pictures.
    """

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        if self.bounds is None:
            return resize.nearest_size(height, width, self.config, MAX_PIXELS)
        return resize.video_size(self.max_frames, height, width, self.config, self.bounds)

    def clips_of(self, window: Window) -> list[tuple[int, ...]]:
        time = self.config.vision_config.temporal_patch_size
        frames = window.frames.tolist()
        frames += frames[-1:] * (-len(frames) % time)
        return [tuple(frames[i : i + time]) for i in range(0, len(frames), time)]

    def parts_of(
        self, window: Window, numbers: list[int], fps: float
    ) -> tuple[list[str | Picture], str, str]:
        """The texts and pictures up to the last text before the answer, that text, and what
        follows the answer."""
        pieces, closing = prompts.cut(self.prompt, self.name, True)
        parts: list[str | Picture] = []
        for kind, text in pieces:
            if kind == "video":
                for clip, number in zip(self.clips_of(window), numbers, strict=True):
                    seconds = (clip[0] + clip[-1]) / 2 / fps
                    parts += [
                        f"<{seconds:.1f} seconds>",
                        Picture(number, self.config.video_token_id),
                    ]
            else:
                parts.append(window.task if kind == "task" else text)
        last = max((i + 1 for i, p in enumerate(parts) if isinstance(p, Picture)), default=0)
        return parts[:last], "".join(parts[last:]), closing


def asked(path: Path, before: int, tails: Sequence[Sequence[int]], which: int) -> Path:
    """`path`, which ends in the inner tokens of answer `which`, with the pairs to read: the tokens
    of `tails[which]`, the first of them predicted by the token in front of place `before`."""
    pairs = tuple((before - 1 + i, token) for i, token in enumerate(tails[which]))
    return dataclasses.replace(path, wanted=(pairs,))


def masked(value: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`value` as float32, NaN where it is not valid."""
    return np.where(valid, value, np.nan).astype(np.float32)


def _window(length: int, most: int) -> np.ndarray:
    """Numbers of the frames shown of `length` frames: all, or `most` of them, evenly and rounded
    down as the published servers do; the last one is always shown."""
    if length <= most:
        return np.arange(length)
    if most == 1:
        return np.array([length - 1])
    return np.linspace(0, length - 1, most).astype(int)
