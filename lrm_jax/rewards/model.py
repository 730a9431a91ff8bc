"""Reward models from folders, and the call that scores a user's frames."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lrm_jax.lora import files as lora_files
from lrm_jax.parallel.mesh import ROW_AXES, MeshConfig, make_mesh, under
from lrm_jax.parallel.placement import gathered
from lrm_jax.parallel.rows import shards
from lrm_jax.qwen3_vl import Config, Qwen3VL, read_adapter, resize, sharding, weights
from lrm_jax.rewards import calibration, chosen_heads, generated
from lrm_jax.rewards import heads as heads_file
from lrm_jax.rewards.calibration import HeadCalibration
from lrm_jax.rewards.engine import RewardEngine
from lrm_jax.rewards.generated import Generated
from lrm_jax.rewards.given import Given, checked_frames, tasks_of
from lrm_jax.rewards.heads import Head
from lrm_jax.rewards.layout import check_sentence
from lrm_jax.rewards.saving import save_reward_model
from lrm_jax.rewards.scores import Scores
from lrm_jax.rewards.tokenizer import Tokenizer
from lrm_jax.run import atomic
from lrm_jax.run.errors import UserError, did_you_mean

_ASSETS = Path(__file__).parent.parent / "assets"
# Models that ship with the package: of PutOnPlate as the quickstart plays it, and of six tasks.
EMBEDDED = {"lrm-nano": _ASSETS / "lrm_nano", "lrm-nano-suite": _ASSETS / "lrm_nano_suite"}
NANO = "lrm-nano"
NANO_FOLDER = EMBEDDED[NANO]
# Where a checkpoint says nothing of its camera, frames keep their size up to this many pixels.
MAX_PIXELS = 512 * 512
# Numbers of frames are rounded up to a multiple of this, so that videos of about one length share a
# program.
FRAME_BUCKET = 16


@dataclasses.dataclass(eq=False)
class RewardModel:
    """A loaded reward model.

    name: as the user gave it. folder: where it was read from. params: the parameter tree.
    image_size: (height, width) of the camera it was trained for, pixels, or None for any.
    adapters: adapter trees by head; adapter_folders: where they were read from.
    calibration: corrections of heads' answers, by head.
    mesh: that parameters are cut and videos are scored over, or None for one device.
    pixels: bounds of the checkpoint's image processor, where it has one: frames are then resized as
      that does (`qwen3_vl.resize`), without one with a triangle filter.
    """

    name: str
    folder: Path
    config: Config
    params: Any
    model: Qwen3VL
    heads: tuple[Head, ...]
    tokenizer: Tokenizer
    image_size: tuple[int, int] | None
    adapters: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    adapter_folders: dict[str, Path] = dataclasses.field(default_factory=dict)
    pixels: resize.PixelBounds | None = None
    calibration: dict[str, HeadCalibration] = dataclasses.field(default_factory=dict)
    mesh: Mesh | None = None
    _engines: dict[Any, RewardEngine] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def variables(self) -> dict[str, Any]:
        """What `RewardEngine.score` takes: the parameters, and the adapters if there are any."""
        if not self.adapters:
            return {"params": self.params}
        return {"params": self.params, "adapters": tuple(self.adapters.values())}

    def engine(
        self,
        sentences: Sequence[str] = (),
        image_size: tuple[int, int] | None = None,
        **settings: Any,
    ) -> RewardEngine:
        """An engine for rollouts about `sentences`; `settings` as in `RewardEngine`."""
        size = image_size or self.image_size
        if size is None:
            raise UserError(f"{self.name} does not say its camera's size: pass image_size")
        numbers = {head: i for i, head in enumerate(self.adapters)}
        return RewardEngine(
            self.model,
            self.heads,
            self.tokenizer,
            size,
            sentences,
            adapters=numbers,
            **({"calibration": self.calibration} | settings),
        )

    def score(
        self,
        frames: Any,
        task: str | Sequence[str],
        *,
        interval: int = 1,
        heads: Sequence[str] | None = None,
        goal: Any = None,
        decode: str = "closed",
        max_new_tokens: int | None = None,
        scaffold: bool = False,
    ) -> Scores:
        """Scores each frame of one video, or of B.

        Args:
          frames: uint8 [T, H, W, 3] or [B, T, H, W, 3]. Frames of another size than the model's
            camera are resized to it; a checkpoint with an image processor's settings resizes as
            that processor does.
          task: the sentence the robot was told; for B videos one sentence or B.
          interval: contrastive compares with the frame this many frames earlier.
          heads: which to ask; all by default.
          goal: uint8 [H, W, 3] or [B, H, W, 3], a frame of the finished task, for heads that show
            one.
          decode: "closed" reads the answers' probabilities; "generate" lets the model write and
            reads the text: values of single answers, NaN where it cannot be read, without
            distribution, entropy and calibration.
          max_new_tokens, scaffold: for "generate", see `generated.score`.
        Returns:
          Scores of numpy arrays [T] or [B, T].
        Raises:
          UserError: frames of another type or shape, no frames, an empty task, an unknown head, a
            goal that is missing or that no head shows; what `generated.score` refuses.

        Of several processes that share the mesh, all call this with the same arguments.
        """
        generated.check_decode(decode, max_new_tokens, scaffold)
        if decode == "generate":
            return self.generate(
                frames, task, interval=interval, heads=heads, goal=goal,
                max_new_tokens=max_new_tokens, scaffold=scaffold,
            ).scores  # fmt: skip
        given = self._given(frames, task, goal)
        with under(self.mesh):
            more, videos = -given.time % FRAME_BUCKET, -len(given.tasks) % shards(ROW_AXES)
            frames = np.pad(given.frames, ((0, more), (0, videos), *((0, 0),) * 3), mode="edge")
            goal = given.goal
            if goal is not None and videos:
                goal = jnp.pad(goal, ((0, videos), *((0, 0),) * 3), mode="edge")
            tasks = given.tasks + given.tasks[-1:] * videos
            shown = self._resize(frames, given.engine.image_size)
            if jax.process_count() > 1:  # what lies on one process's device, others do not have
                shown, goal = jax.device_get((shown, goal))
            scores = given.engine.score(
                self.variables,
                shown,
                np.arange(len(tasks), dtype=np.int32),
                heads=heads,
                interval=interval,
                sentences=tasks,
                goal=goal,
            )
            if jax.process_count() > 1:
                scores = gathered(scores)
        return jax.tree.map(given.user_order, scores)

    def generate(
        self,
        frames: Any,
        task: str | Sequence[str],
        *,
        interval: int = 1,
        heads: Sequence[str] | None = None,
        goal: Any = None,
        max_new_tokens: int | None = None,
        scaffold: bool = False,
    ) -> Generated:
        """What `score` with decode="generate" reads, with the texts and how many were not read;
        arrays [T, ...] or [B, T, ...]."""
        given = self._given(frames, task, goal)
        with under(self.mesh):
            found = generated.score(
                given.engine,
                self.variables,
                self._resize(given.frames, given.engine.image_size),
                given.tasks,
                heads=heads,
                interval=interval,
                goal=given.goal,
                max_new_tokens=max_new_tokens,
                scaffold=scaffold,
            )
        return dataclasses.replace(
            found,
            scores=jax.tree.map(given.user_order, found.scores),
            texts={name: given.user_order(texts) for name, texts in found.texts.items()},
        )

    def _given(self, frames: Any, task: str | Sequence[str], goal: Any) -> Given:
        """A user's frames, tasks and goal, checked, and the engine for their size."""
        frames = checked_frames(frames)
        single = frames.ndim == 4
        frames = frames[None] if single else frames
        tasks = tasks_of(task, len(frames))
        for sentence in tasks:
            check_sentence(sentence)
        size = self.image_size or self._own_size(frames.shape[2:4])
        if size not in self._engines:
            self._engines[size] = self.engine(image_size=size)
        if goal is not None:
            goal = self._resize(self._goal(goal, len(frames))[None], size)[0]
        return Given(np.moveaxis(frames, 0, 1), single, tasks, goal, self._engines[size])

    def _own_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """What frames of `size` are resized to where the model is not tied to a camera."""
        if self.pixels is None:
            return resize.nearest_size(*size, self.config, MAX_PIXELS)
        return resize.image_size(*size, self.config, self.pixels)

    def _resize(self, frames: np.ndarray, size: tuple[int, int]) -> jax.Array:
        """Frames uint8 [T, B, H, W, 3] at `size`, on the device."""
        if frames.shape[2:4] == size:
            return jnp.asarray(frames)
        resized = resize.linear if self.pixels is None else resize.bicubic
        return jnp.stack([resized(f, size) for f in frames])

    def _goal(self, goal: Any, count: int) -> np.ndarray:
        """A user's goal as uint8 [B, H, W, 3]."""
        if not any("goal" in head.images for head in self.heads):
            raise UserError("goal: no head of this model shows <image:goal>; leave it out")
        goal = np.asarray(goal)
        if goal.ndim == 3:
            goal = np.repeat(goal[None], count, axis=0)
        if goal.dtype != np.uint8 or goal.ndim != 4 or goal.shape[3] != 3 or 0 in goal.shape:
            raise UserError(
                f"goal is {goal.dtype}{list(goal.shape)}: give uint8 [H, W, 3] or [B, H, W, 3]"
            )
        if len(goal) != count:
            raise UserError(f"{count} videos but {len(goal)} goals: give one for all or one each")
        return goal

    def with_adapters(
        self,
        folders: Mapping[str, str | os.PathLike[str]],
        allow_identity_adapter: bool = False,
    ) -> RewardModel:
        """The same base with these PEFT folders, by head, in place of its adapters; nothing else is
        loaded again. UserError as `load_reward_model`."""
        known, trees = [head.name for head in self.heads], {}
        for head, where in folders.items():
            if head not in known:
                raise UserError(
                    f"adapters: the model has no head {head!r}; {did_you_mean(head, known)}"
                )
            trees[head] = read_adapter(
                where, self.config, self.params, allow_identity_adapter=allow_identity_adapter
            )
            if self.mesh is not None:
                trees[head] = sharding.place_adapter(trees[head], self.mesh)
        paths = {head: Path(where) for head, where in folders.items()}
        return dataclasses.replace(self, adapters=trees, adapter_folders=paths, _engines={})

    def save(self, folder: str | os.PathLike[str], dtype: str = "bfloat16") -> None:
        """Writes the model folder that `load_reward_model` reads; weights rounded to `dtype`.

        UserError if heads have adapters: a model folder holds one set of weights.
        """
        if self.adapters:
            raise UserError(
                f"{self.name}: its heads have adapters; save those apart (lora.save_peft), or merge"
            )
        save_reward_model(
            folder,
            self.config,
            self.params,
            self.heads,
            self.tokenizer,
            self.image_size,
            dtype,
            self.calibration,
        )

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of the model: hashes of weights, adapters, prompts, tokenizer."""
        files = sorted(self.folder.glob("*.safetensors"))
        found = {
            "model": self.name,
            "model_sha256": {f.name: atomic.sha256(f) for f in files},
            "prompt_sha256": heads_file.fingerprint(self.heads),
            "tokenizer_sha256": self.tokenizer.digest,
        }
        if self.calibration:
            found["calibration"] = calibration.to_plain(self.calibration)
        if self.adapters:
            found["adapter_sha256"] = lora_files.facts(self.adapter_folders)
        return found


def load_reward_model(
    name_or_folder: str | os.PathLike[str],
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    dtype: str = "float32",
    allow_identity_adapter: bool = False,
    heads: str | os.PathLike[str] | None = None,
    max_pixels: int | None = None,
    calibrated: bool = True,
    mesh: Mesh | MeshConfig | str | None = None,
) -> RewardModel:
    """Loads a reward model.

    Args:
      name_or_folder: "lrm-nano", "lrm-nano-suite", or a folder with a Qwen3-VL checkpoint
        (`config.json`, safetensors, `tokenizer.json`). Without `reward_heads.json` in it the heads
        are `heads.default_heads`.
      adapters: PEFT folders by head; a head without one asks the base model.
      dtype: "float32" or "bfloat16", of parameters and computation. Factors stay float32.
      allow_identity_adapter: accept an adapter whose every lora_B is zero.
      heads: in place of the model's own: "default", "joint" or "nano", or a file in the format of
        `reward_heads.json` (`heads.read_heads`).
      max_pixels: larger frames are made smaller, in place of the bound in the checkpoint's
        `preprocessor_config.json` (released models: 16.8 million pixels, 16,384 tokens a frame).
      calibrated: apply the calibration that is saved with the heads, if there is one.
      mesh: devices to score on, e.g. "fsdp=-1" for all of them: parameters go straight from file to
        shard.
    Raises:
      UserError: a folder is missing, damaged or holds another kind of model, or an adapter does not
        fit or does nothing (see `lora.load_peft`).
    """
    name = os.fspath(name_or_folder)
    folder = EMBEDDED.get(name, Path(name))
    if name in EMBEDDED and not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{name}: its weights are missing from this installation; install the package again"
        )
    if not folder.is_dir():
        raise UserError(
            f"{name}: no such model; give {' or '.join(EMBEDDED)}, or a folder with a Qwen3-VL "
            "checkpoint"
        )
    config = weights.read_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    source = folder / heads_file.FILE if heads is None else heads
    heads, extra = chosen_heads.choose(folder, heads)
    size = _image_size(extra.get("image_size"), folder)
    correction = calibration.from_plain(
        extra.get(calibration.ENTRY), heads_file.by_name(heads), str(source)
    )
    if tokenizer.size > config.text_config.vocab_size:
        raise UserError(
            f"{folder}: tokenizer.json has {tokenizer.size} tokens, the model only "
            f"{config.text_config.vocab_size}: they do not belong together"
        )
    if mesh is not None and not isinstance(mesh, Mesh):
        mesh = make_mesh(mesh)
    homes = None if mesh is None else sharding.homes(config, mesh)
    model = RewardModel(
        name=name,
        folder=folder,
        config=config,
        params=weights.read_params(folder, config, dtype, homes),
        model=Qwen3VL(config, dtype=jnp.dtype(dtype)),
        heads=heads,
        tokenizer=tokenizer,
        image_size=size,
        pixels=_pixels(folder, max_pixels),
        calibration=correction if calibrated else {},
        mesh=mesh,
    )
    return model.with_adapters(adapters, allow_identity_adapter) if adapters else model


def _image_size(raw: Any, folder: Path) -> tuple[int, int] | None:
    if raw is None:
        return None
    if not (
        isinstance(raw, list) and len(raw) == 2 and all(isinstance(v, int) and v > 0 for v in raw)
    ):
        raise UserError(
            f"{folder / heads_file.FILE}: image_size must be [height, width] in pixels, not {raw!r}"
        )
    return raw[0], raw[1]


def _pixels(folder: Path, most: int | None) -> resize.PixelBounds | None:
    found = resize.read_bounds(folder)
    if most is None:
        return found
    if most < 1:
        raise UserError(f"max_pixels is {most}: give a number of pixels, such as 262144")
    return resize.PixelBounds(min(most, found.fewest if found else 1), most)
