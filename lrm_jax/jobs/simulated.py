"""Episodes of the scripted demonstrator, played and rendered on the device in batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.envs import expert, panda
from lrm_jax.envs.base import Env
from lrm_jax.episodes.episode import Episode
from lrm_jax.render import render
from lrm_jax.run.errors import UserError
from lrm_jax.run.progress import bar

PER_EPISODE = ("task_id", "named", "own", "colours")


@dataclasses.dataclass(frozen=True)
class Collection:
    """What to collect.

    episodes: how many. modes: share of each intention of the demonstrator (envs.expert.MODES).
    size: image height and width in pixels. stride: control steps per stored frame.
    batch: environments played at once (one compiled program whatever ``episodes`` is).
    """

    episodes: int
    modes: dict[str, float]
    size: int = 64
    stride: int = 2
    batch: int = 128
    seed: int = 0

    def validate(self) -> None:
        """UserError for an unknown mode or shares that are not positive."""
        if unknown := sorted(set(self.modes) - set(expert.MODES)):
            raise UserError(f"mode {unknown[0]!r} is unknown: known are {', '.join(expert.MODES)}")
        if not self.modes or min(self.modes.values()) < 0 or sum(self.modes.values()) <= 0:
            raise UserError("modes must give at least one mode a positive share")
        if self.episodes < 1 or self.batch < 1 or self.stride < 1:
            raise UserError("episodes, batch and stride must be at least 1")


def demonstrated(env: Env, modes: dict[str, float]) -> expert.Spans:
    """Where the flaws of this task's demonstrator strike.

    UserError: the task has none, or a mode has no meaning in it.
    """
    if not hasattr(env, "program"):
        raise UserError("there is no scripted demonstrator for this task: give episodes from files")
    wanted = {mode for mode, share in modes.items() if share > 0}
    if unknown := sorted(wanted - set(env.modes)):
        raise UserError(f"{env.name} has no mode {unknown[0]!r}: it has {', '.join(env.modes)}")
    return env.spans


def make_play(
    env: Env, collection: Collection, demonstrator: expert.DemonstratorConfig
) -> Callable:
    """A compiled batch of episodes: (key, modes int32 [N]) -> arrays, frames uint8 [T,N,H,W,3]."""
    size, stride = collection.size, collection.stride
    spans, rows = demonstrated(env, collection.modes), jnp.array(env.alternatives)
    if env.episode_length % stride:
        raise UserError(f"stride {stride} does not divide the episode's {env.episode_length} steps")

    def look(state) -> dict[str, jax.Array]:
        model, data = env.scene(state)
        judged = [env.facts(state, jnp.array(named)) for named in env.alternatives]
        eye = env.mj_model.camera(env.camera).id
        return {
            "frames": render(model, data, env.camera, size, size),
            "progress": jnp.stack([f["progress"] for f in judged]),
            "success": jnp.stack([f["success"] for f in judged]),
            "tcp": judged[0]["tcp"],
            "eye_place": data.cam_xpos[eye],
            "eye_turn": data.cam_xmat[eye],
            "open": state.info["target"].finger / panda.FINGER_MAX,
            **env.record(state),
        }  # fmt: skip

    def play(key: jax.Array, modes: jax.Array) -> dict[str, Any]:
        k_reset, k_plan = jax.random.split(key)
        count = modes.shape[0]
        state = jax.vmap(env.reset)(jax.random.split(k_reset, count))
        plan = jax.vmap(lambda k, m: expert.begin(k, m, demonstrator, spans))(
            jax.random.split(k_plan, count), modes
        )

        def control(carry, _):
            state, plan = carry
            action, plan = jax.vmap(lambda s, p: expert.act(env, s, p, demonstrator))(state, plan)
            seen = state.obs["proprio"]
            return (jax.vmap(env.step)(state, action), plan), (seen, action)

        def frame(carry, _):
            record = jax.vmap(look)(carry[0])
            carry, (seen, action) = jax.lax.scan(control, carry, None, length=stride)
            return carry, (record, seen, action)

        (state, plan), (records, seen, actions) = jax.lax.scan(
            frame, (state, plan), None, length=env.episode_length // stride
        )
        last = jax.vmap(look)(state)
        records = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), records, last)
        merge = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        return {
            **records,
            "proprio": jnp.concatenate([merge(seen), state.obs["proprio"][None]]),
            "actions": merge(actions),
            "task_id": state.info["task_id"],
            "named": state.info["named"],
            "own": jnp.argmax((state.info["named"][:, None] == rows).all(-1), -1),
            "colours": state.info["colours"],
        }

    return jax.jit(play)


def collect(
    env: Env, collection: Collection, demonstrator: expert.DemonstratorConfig | None = None
) -> dict[str, np.ndarray]:
    """Play ``collection.episodes`` episodes; arrays with the episode axis first.

    Returns:
      frames uint8 [E,T,H,W,3]; progress float32 and success bool [E,T,A], one for each of the
      task's ``alternatives``; tcp float32 [E,T,3] in m; eye_place [E,T,3] and eye_turn [E,T,3,3]
      of the camera; open [E,T]; proprio [E,S+1,P]; actions [E,S,7]; task_id, mode int32 [E]; named
      [E,K], own [E] (its place among the alternatives); colours [E,M]; and what `env.record`
      gives, such as grasped bool [E,T,A].
    """
    collection.validate()
    demonstrator = demonstrator or expert.DemonstratorConfig()
    play = make_play(env, collection, demonstrator)
    modes = draw_modes(collection)
    parts = []
    batch = min(collection.batch, collection.episodes)
    starts = range(0, collection.episodes, batch)
    for number, start in enumerate(bar(starts, desc="demonstrations", unit="batch")):
        some = modes[start : start + batch]
        padded = np.resize(some, batch)  # the last batch is filled up, not recompiled
        key = jax.random.fold_in(jax.random.key(collection.seed), number)
        out = jax.device_get(play(key, jnp.asarray(padded)))
        per_episode = {k: v for k, v in out.items() if k in PER_EPISODE}
        arrays = {k: np.moveaxis(v, 1, 0) for k, v in out.items() if k not in per_episode}
        parts.append({k: v[: len(some)] for k, v in {**arrays, **per_episode}.items()})
    merged = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return {**merged, "mode": modes}


def draw_modes(collection: Collection) -> np.ndarray:
    """Intentions int32 [E] in the stated shares (largest remainders), shuffled by the seed."""
    shares = np.array([collection.modes.get(m, 0.0) for m in expert.MODES])
    exact = shares / shares.sum() * collection.episodes
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact)
    counts[order[: collection.episodes - counts.sum()]] += 1
    modes = np.repeat(np.arange(len(expert.MODES)), counts).astype(np.int32)
    return np.random.default_rng([collection.seed, 7]).permutation(modes)


def episodes(
    arrays: dict[str, np.ndarray], env: Env, stride: int, said: Sequence[int] = ()
) -> Iterator[Episode]:
    """The collected arrays as Episodes, with every sentence of the scene, worded like the episode's
    own, in ``meta``. said: numbers of wordings to say it with, in turn, instead of its own."""
    for e in range(len(arrays["task_id"])):
        own = int(arrays["own"][e])
        wording = said[e % len(said)] if said else env.wording_of(arrays["task_id"][e])
        sentences = env.sentences(np.asarray(arrays["colours"][e]), wording)
        yield Episode(
            frames=arrays["frames"][e],
            task=sentences[own],
            fps=env.control_hz / stride,
            success=bool(arrays["success"][e, -1, own]),
            proprio=arrays["proprio"][e],
            actions=arrays["actions"][e],
            progress=arrays["progress"][e, :, own].astype(np.float32),
            source="lrm_sim",
            camera=env.camera,
            meta={
                "stride": stride,
                "mode": expert.MODES[int(arrays["mode"][e])],
                "wording": wording,
                "progress_by_task": {
                    s: arrays["progress"][e, :, i] for i, s in enumerate(sentences) if i != own
                },
            },
        )
