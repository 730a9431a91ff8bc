"""A tiny pixel environment: a white point must reach the dot that the sentence names.

Two dots, red and blue, lie in the unit square; of the 7 action numbers the first two move the
point. `break_below` turns physics non-finite for an environment that leaves the square
there.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

SENTENCES = ("reach the red dot", "reach the blue dot")
COLOURS = np.array([[220, 30, 30], [40, 60, 230]], np.float32)
SIZE = 32


@flax.struct.dataclass
class State:
    data: dict
    obs: dict
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class PixelPoint:
    """Reset places point and dots at random; success within `radius` of the named dot."""

    action_size, proprio_size, instructions = 7, 2, SENTENCES

    def __init__(
        self, episode_length=20, step_size=0.06, radius=0.08, break_below=None, stop=False
    ):
        self.episode_length, self.step_size, self.radius = episode_length, step_size, radius
        self.break_below, self.stop = break_below, stop

    def reset(self, rng):
        keys = jax.random.split(rng, 3)
        point = jax.random.uniform(keys[0], (2,), minval=0.1, maxval=0.9)
        red = jax.random.uniform(keys[1], (2,), minval=0.1, maxval=0.9)
        offset = jnp.array([0.4, 0.4]) * jnp.where(red > 0.5, -1.0, 1.0)
        task = jax.random.randint(keys[2], (), 0, 2)
        zero = jnp.zeros(())
        data = {"point": point, "dots": jnp.stack([red, red + offset])}
        info = {"task_id": task, "step": jnp.zeros((), jnp.int32), "start": zero}
        state = State(data, {}, zero, zero, {}, info)
        start = jnp.linalg.norm(point - data["dots"][task])
        return self._observe(state.replace(info=dict(info, start=start)))

    def step(self, state, action):
        point = state.data["point"] + self.step_size * jnp.clip(action[:2], -1, 1)
        if self.break_below is not None:
            point = jnp.where(point[0] < self.break_below, jnp.nan, point)
        else:
            point = jnp.clip(point, 0.0, 1.0)
        info = dict(state.info, step=state.info["step"] + 1)
        return self._observe(state.replace(data=dict(state.data, point=point), info=info))

    def _observe(self, state):
        point, goal = state.data["point"], state.data["dots"][state.info["task_id"]]
        distance = jnp.linalg.norm(point - goal)
        success = (distance < self.radius).astype(jnp.float32)
        done = (state.info["step"] >= self.episode_length).astype(jnp.float32)
        if self.stop:
            done = jnp.maximum(done, success)
        progress = jnp.clip(1 - distance / state.info["start"], 0, 1)
        metrics = {"success": success, "progress": progress}
        return state.replace(obs={"proprio": point}, metrics=metrics, done=done)


def draw(state):
    """uint8 [N,32,32,3]: the dots as soft discs, the point on top."""
    axis = (jnp.arange(SIZE) + 0.5) / SIZE
    pixels = jnp.stack(jnp.meshgrid(axis, axis, indexing="xy"), -1)

    def one(data):
        image = jnp.full((SIZE, SIZE, 3), 90.0)
        layers = [(data["dots"][0], COLOURS[0]), (data["dots"][1], COLOURS[1])]
        for centre, colour in [*layers, (data["point"], np.array([255.0] * 3))]:
            distance = jnp.linalg.norm(pixels - centre, axis=-1)
            inside = jnp.clip((0.06 - distance) * SIZE, 0, 1)[..., None]
            image = image * (1 - inside) + inside * colour
        return image.astype(jnp.uint8)

    return jax.vmap(one)(state.data)


def expert(state, step_size):
    """Actions [7] towards the named dot (of one environment)."""
    goal = state.data["dots"][state.info["task_id"]]
    move = jnp.clip((goal - state.data["point"]) / step_size, -1, 1)
    return jnp.zeros(7).at[:2].set(move)


def demonstrations(env, rng, episodes):
    """frames [E,S,32,32,3], proprio [E,S,2], task_ids [E], actions [E,S,7] of expert episodes."""

    def play(state, _):
        action = jax.vmap(lambda s: expert(s, env.step_size))(state)
        return jax.vmap(env.step)(state, action), (draw(state), state.obs["proprio"], action)

    state = jax.vmap(env.reset)(jax.random.split(rng, episodes))
    _, outputs = jax.lax.scan(play, state, None, length=env.episode_length)
    frames, proprio, actions = (np.asarray(jnp.swapaxes(x, 0, 1)) for x in outputs)
    return frames, proprio, np.asarray(state.info["task_id"]), actions
