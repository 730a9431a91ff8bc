"""The policy: an image, a sentence and proprioception in; a chunk of actions and a value out.

    frame uint8 [64,64,3] -- space to depth --> 16x16x48 -- dense --> 16x16xC
        -- residual 3x3 convolutions, each modulated by the sentence (FiLM, Perez et al. 2018) -->
        -- spatial softmax (Levine et al. 2016): expected image coordinates of K learned points -->
    waypoints: [coordinates, sentence] -> where the tool has to go, in the workspace
    features = [coordinates, presence, sentence, waypoints]
    actor:  [features, proprioception, waypoints - tool] -> MLP -> chunk mean [steps, actions]
            (head "gaussian"), or an action expert that carries noise to a chunk (head "flow")
    critic: [stop_gradient(features), proprioception, elapsed time] -> MLP -> value

Space to depth keeps every pixel at a quarter of the resolution per side, and the softmax's expected
coordinates are continuous, so points are located to a fraction of a pixel. The critic has a trunk
of its own on features that it cannot change: with little data the value's noisy gradient would
spoil what cloning taught the encoder, and with a frozen encoder features can be computed once per
rollout.

Variables are one plain tree with three collections: `params` (encoder, actor, critic), `norm`
(mean and std of proprioception in the demonstrations) and `tasks` (the token table that task ids
index), so a policy's tree is all that a jitted function needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.policies.config import PolicyConfig, raw_std
from lrm_jax.policies.convolution import conv3x3
from lrm_jax.policies.distribution import ChunkNormal
from lrm_jax.policies.expert import Expert
from lrm_jax.policies.flow import ChainNormal
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.run.errors import UserError

Variables = dict[str, Any]


@flax.struct.dataclass
class PolicyOutput:
    """distribution over [B,C,A] chunks, value float32 [B], features float32 [B,F].

    distribution is None with the flow head, whose decisions have to be drawn (`denoise`).
    """

    distribution: ChunkNormal | None
    value: jax.Array
    features: jax.Array


class SentenceEncoder(nn.Module):
    """tokens int32 [B,L], mask bool [B,L] -> float32 [B, sentence_size]."""

    config: PolicyConfig
    vocabulary_size: int

    @nn.compact
    def __call__(self, tokens, mask):
        c = self.config
        x = nn.Embed(self.vocabulary_size, c.word_size, name="words")(tokens)
        place = self.param(
            "positions", nn.initializers.normal(0.1), (tokens.shape[-1], c.word_size)
        )
        x = (x + place) * mask[..., None]
        # Each word together with the one before it: a colour reaches the noun that it belongs to.
        before = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
        x = nn.silu(nn.Dense(c.word_size, name="pairs")(jnp.concatenate([before, x], -1)))
        scores = nn.Dense(c.queries, use_bias=False, name="queries")(x)
        weights = nn.softmax(jnp.where(mask[..., None], scores, -1e9), axis=-2)
        pooled = jnp.einsum("blq,bld->bqd", weights, x)
        return nn.Dense(c.sentence_size, name="out")(pooled.reshape(pooled.shape[0], -1))


class FilmBlock(nn.Module):
    """x [B,H,W,C], sentence [B,S] -> x + relu((1 + scale) conv(x) + shift)."""

    @nn.compact
    def __call__(self, x, sentence):
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, width, width))
        film = nn.Dense(2 * width, kernel_init=nn.initializers.normal(0.02), name="film")(sentence)
        scale, shift = jnp.split(film[:, None, None, :], 2, axis=-1)
        return x + nn.relu(conv3x3(x, kernel) * (1.0 + scale) + shift)


def space_to_depth(frames: jax.Array, patch: int) -> jax.Array:
    """[B,H,W,C] -> [B,H/patch,W/patch,patch*patch*C], any dtype."""
    b, h, w, c = frames.shape
    x = frames.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch, w // patch, patch * patch * c)


def spatial_softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """logits [B,H,W,K] -> expected (x, y) in [-1,1] as [B,2K], log-mean-exp presence [B,K].

    x runs along W, y along H. One contraction with (x, y, 1) gives sums and normaliser together.
    """
    b, h, w, k = logits.shape
    ys, xs = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    basis = np.stack([xs, ys, np.ones_like(xs)], -1).reshape(h * w, 3)
    flat = logits.reshape(b, h * w, k)
    top = jax.lax.stop_gradient(flat.max(1, keepdims=True))
    sums = jnp.einsum("bpk,pd->bkd", jnp.exp(flat - top), basis.astype(logits.dtype))
    points = sums[..., :2] / sums[..., 2:]
    presence = jnp.log(sums[..., 2] / (h * w)) + top[:, 0]
    return points.reshape(b, 2 * k), presence


class Encoder(nn.Module):
    """frames uint8 [B,H,W,3], tokens, mask [B,L] -> features float32 [B,F].

    F = 3 keypoints + sentence_size + 3 waypoints; the waypoints stand last.
    """

    config: PolicyConfig
    vocabulary_size: int

    @nn.compact
    def __call__(self, frames, tokens, mask):
        c = self.config
        sentence = SentenceEncoder(c, self.vocabulary_size, name="sentence")(tokens, mask)
        x = space_to_depth(frames, c.patch).astype(jnp.float32) / 127.5 - 1.0
        x = nn.relu(nn.Dense(c.channels, name="stem")(x))
        for i in range(c.blocks):
            x = FilmBlock(name=f"block_{i}")(x, nn.silu(sentence))
        # Large logits at the start: with small ones every point begins at the image's centre, and
        # the first epochs go by before any of them looks anywhere (measured: 5 times the loss after
        # 4).
        sharp = nn.initializers.variance_scaling(16.0, "fan_in", "truncated_normal")
        points, presence = spatial_softmax(
            nn.Dense(c.keypoints, kernel_init=sharp, name="keypoints")(x)
        )
        parts = [points, jnp.tanh(presence / 4.0), nn.silu(sentence)]
        if c.waypoints:
            # From image to workspace through a small network: a camera's mapping is nearly linear.
            hidden = nn.silu(nn.Dense(64, name="lift")(jnp.concatenate([points, sentence], -1)))
            places = jnp.concatenate([hidden, points], -1)
            parts.append(nn.Dense(3 * c.waypoints, name="waypoints")(places))
        return jnp.concatenate(parts, -1)


class Trunk(nn.Module):
    """Two hidden layers with LayerNorm; the last layer starts small."""

    hidden: int
    out: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.silu(nn.LayerNorm(use_fast_variance=False)(nn.Dense(self.hidden)(x)))
        return nn.Dense(self.out, kernel_init=nn.initializers.normal(0.01))(x)


class Actor(nn.Module):
    """inputs [B,*] -> mean [B,C,A], raw log-std [A]."""

    config: PolicyConfig

    @nn.compact
    def __call__(self, inputs):
        c = self.config
        mean = Trunk(c.hidden, c.chunk * c.action_size, name="trunk")(inputs)
        raw = self.param("raw_std", lambda _: raw_std(jnp.full((c.action_size,), c.init_std), c))
        return mean.reshape(-1, c.chunk, c.action_size), raw


class Policy(nn.Module):
    """See the module docstring. Methods take a leading batch axis B and are used through apply."""

    config: PolicyConfig
    vocabulary_size: int
    proprio_size: int

    def setup(self):
        c = self.config
        self.encoder = Encoder(c, self.vocabulary_size)
        self.actor = Actor(c) if c.head == "gaussian" else Expert(c)
        self.critic = Trunk(c.hidden, 1)
        self.mean = self.variable("norm", "mean", jnp.zeros, (self.proprio_size,))
        self.std = self.variable("norm", "std", jnp.ones, (self.proprio_size,))
        self.tokens = self.variable("tasks", "tokens", lambda: jnp.zeros((1, 1), jnp.int32))
        self.mask = self.variable("tasks", "mask", lambda: jnp.ones((1, 1), bool))

    def encode(self, frames, task_ids):
        """frames uint8 [B,H,W,3], task_ids int32 [B] -> features float32 [B,F]."""
        return self.encoder(frames, self.tokens.value[task_ids], self.mask.value[task_ids])

    def _normal(self, proprio):
        # Clipped: a joint outside the demonstrated range must not swamp the other inputs.
        return jnp.clip((proprio - self.mean.value) / self.std.value, -5.0, 5.0)

    def _seen(self, features, proprio):
        c = self.config
        normal = self._normal(proprio)
        inputs = [features, normal]
        if c.waypoints:
            # What the hand has to do depends on where things are from the hand.
            away = self.predicted_waypoints(features) - normal[:, None, :3]
            inputs.append(away.reshape(away.shape[0], -1))
        return jnp.concatenate(inputs, -1)

    def _log_std(self, raw):
        low, high = np.log(self.config.min_std), np.log(self.config.max_std)
        return low + (high - low) * nn.sigmoid(raw)

    def act(self, features, proprio, chain=None) -> ChunkNormal | ChainNormal:
        """features [B,F], proprio float32 [B,P] -> distribution over chunks [B,C,A].

        With the flow head: over the denoise chain of a decision, along the `chain` [B,K+1,C,A] that
        it took.
        """
        c = self.config
        seen = self._seen(features, proprio)
        if c.head == "gaussian":
            mean, raw = self.actor(seen)
            return ChunkNormal(mean, self._log_std(raw), c.rho, c.explored, c.cosines)
        before = chain[:, :-1]
        steps = before.shape[1]
        velocity, raw = self.actor(seen, before, jnp.arange(steps) / steps)
        return self._chain(before + velocity / steps, self._log_std(raw))

    def _chain(self, mean, log_std) -> ChainNormal:
        c = self.config
        return ChainNormal(mean, log_std, c.rho, c.explored, c.cosines, c.flow.logprob == "mean")

    def denoise(self, features, proprio, start, rng, deterministic):
        """Decisions of the flow head: the chain float32 [B,K+1,C,A] from `start` [B,C,A], whose
        last element is the action, and its ChainNormal. deterministic bool []: without noise on the
        steps, the plain Euler solution."""
        c = self.config
        seen = self._seen(features, proprio)
        chain, means, stds = [start], [], []
        for k in range(c.flow.steps):
            time = jnp.full((1,), k / c.flow.steps)
            velocity, raw = self.actor(seen, chain[-1][:, None], time)
            mean = chain[-1] + velocity[:, 0] / c.flow.steps
            step = ChunkNormal(mean, self._log_std(raw[:, 0]), c.rho, c.explored, c.cosines)
            drawn = step.sample(jax.random.fold_in(rng, k))
            chain.append(jnp.where(deterministic, mean, drawn))
            means.append(mean)
            stds.append(step.log_std)
        return jnp.stack(chain, 1), self._chain(jnp.stack(means, 1), jnp.stack(stds, 1))

    def velocity(self, features, proprio, chunks, times):
        """features [B,F], proprio [B,P], noisy chunks [B,K,C,A], times [B,K] -> [B,K,C,A]; flow
        head only."""
        return self.actor.velocity(self._seen(features, proprio), chunks, times)

    def predicted_waypoints(self, features):
        """features [B,F] -> float32 [B,waypoints,3], in normalised units of the tool's position."""
        count = self.config.waypoints
        return features[:, -3 * count :].reshape(-1, count, 3)

    def value(self, features, proprio, elapsed):
        """features [B,F], proprio [B,P], elapsed float32 [B] in [0,1] -> float32 [B].

        elapsed is the share of the fixed episode length that has passed; without it the return of a
        time-limited episode is no function of the observation.
        """
        inputs = [jax.lax.stop_gradient(features), self._normal(proprio), elapsed[:, None]]
        return self.critic(jnp.concatenate(inputs, -1))[:, 0]

    def __call__(self, frames, proprio, task_ids, elapsed) -> PolicyOutput:
        features = self.encode(frames, task_ids)
        value = self.value(features, proprio, elapsed)
        if self.config.head == "gaussian":
            return PolicyOutput(self.act(features, proprio), value, features)
        if self.is_mutable_collection("params"):  # being made: `act` has all parameters
            c = self.config
            self.act(features, proprio, jnp.zeros((1, c.flow.steps + 1, c.chunk, c.action_size)))
        return PolicyOutput(None, value, features)


def with_tasks(variables: Variables, vocabulary: Vocabulary, sentences: Sequence[str]) -> Variables:
    """The same policy with task ids that index `sentences` (UserError for unknown words)."""
    tokens, mask = vocabulary.encode(sentences)
    return {**variables, "tasks": {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}}


def with_proprio_statistics(variables: Variables, mean, std) -> Variables:
    """The same policy with proprioception normalised by mean and std, float [P] each."""
    norm = {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}
    return {**variables, "norm": norm}


def init_variables(
    policy: Policy, rng: jax.Array, vocabulary: Vocabulary, sentences: Sequence[str]
) -> Variables:
    """Fresh variables {params, norm, tasks} whose task ids index `sentences`."""
    c = policy.config
    if policy.vocabulary_size != vocabulary.size:
        raise UserError(
            f"policy is built for {policy.vocabulary_size} words, vocabulary has {vocabulary.size}"
        )
    size = policy.proprio_size
    constants = with_proprio_statistics({}, jnp.zeros(size), jnp.ones(size))
    constants = with_tasks(constants, vocabulary, sentences)

    def init(rng, constants):
        frames = jnp.zeros((1, c.image_size, c.image_size, 3), jnp.uint8)
        inputs = (frames, jnp.zeros((1, size)), jnp.zeros(1, jnp.int32), jnp.zeros(1))
        return policy.apply(constants, *inputs, rngs={"params": rng}, mutable=["params"])[1]

    return {**jax.jit(init)(rng, constants), **constants}
