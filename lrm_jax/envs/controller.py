"""Cartesian delta-pose control through damped-least-squares differential inverse kinematics."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from lrm_jax.envs import panda


@struct.dataclass
class Target:
    """What the controller is asked to reach: tool pose in the base frame and joint targets.

    position float [3] in m, rotation float [3,3], joints float [7] in rad, finger float [] in m.
    """

    position: jax.Array
    rotation: jax.Array
    joints: jax.Array
    finger: jax.Array


@dataclasses.dataclass(frozen=True)
class DeltaPoseController:
    """Seven numbers in [-1, 1] to nine servo targets (the convention of ManiSkill and Bridge).

    Actions 0-2 move the target position by at most ``max_translation`` metres a control step,
    3-5 turn it by at most ``max_rotation`` radians (rotation vector, base frame), 6 commands the
    gripper (+1 open, -1 closed, linear between). The joint targets follow by damped least squares
    (Wampler 1986) with a pull towards the ready posture in the null space.
    """

    max_translation: float = 0.03
    max_rotation: float = 0.08
    low: tuple[float, float, float] = (0.30, -0.32, 0.018)
    high: tuple[float, float, float] = (0.75, 0.32, 0.40)
    damping: float = 0.05
    posture_gain: float = 0.05
    iterations: int = 2

    def solve(self, target: Target, home: jax.Array) -> jax.Array:
        """Joint angles [7] nearer to ``target`` than ``target.joints``, within joint limits."""
        q = target.joints
        for _ in range(self.iterations):
            pos, rot, jac = panda.forward_kinematics(q)
            error = jnp.concatenate([target.position - pos, _rotation_error(target.rotation, rot)])
            gram = jac @ jac.T + self.damping**2 * jnp.eye(6, dtype=q.dtype)
            posture = self.posture_gain * (home - q)
            step = posture + jac.T @ _solve_spd(gram, error - jac @ posture)
            q = jnp.clip(q + step, panda.JOINT_LOW, panda.JOINT_HIGH)
        return q

    def apply(self, target: Target, action: jax.Array, home: jax.Array) -> Target:
        """The next target after one action [7]; values outside [-1, 1] are clipped."""
        action = jnp.clip(action, -1.0, 1.0)
        position = target.position + action[:3] * self.max_translation
        position = jnp.clip(position, jnp.array(self.low), jnp.array(self.high))
        rotation = _rotation_matrix(action[3:6] * self.max_rotation) @ target.rotation
        finger = panda.FINGER_MAX * (action[6] + 1.0) / 2.0
        moved = Target(position, rotation, target.joints, finger)
        return moved.replace(joints=self.solve(moved, home))

    def control(self, target: Target) -> jax.Array:
        """Servo targets [9]: seven joints [rad] and both fingers [m]."""
        # A closed command aims beyond contact so that the servo's force limit sets the grip.
        finger = target.finger - 0.015 * (target.finger < 0.02)
        return jnp.concatenate([target.joints, jnp.stack([finger, finger])])


def _solve_spd(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """Solve a small symmetric positive definite system by an unrolled Cholesky factorisation.

    Written out because it vectorises over a batch, which one LAPACK call per matrix does not, and
    because two batched LAPACK calls at once can starve XLA's CPU thread pool (each waits on it).
    """
    n = vector.shape[0]
    low = [[None] * n for _ in range(n)]
    out = [None] * n
    for i in range(n):
        for j in range(i + 1):
            rest = matrix[i, j] - sum(low[i][k] * low[j][k] for k in range(j))
            low[i][j] = jnp.sqrt(rest) if i == j else rest / low[j][j]
        out[i] = (vector[i] - sum(low[i][k] * out[k] for k in range(i))) / low[i][i]
    for i in reversed(range(n)):
        rest = out[i] - sum(low[k][i] * out[k] for k in range(i + 1, n))
        out[i] = rest / low[i][i]
    return jnp.stack(out)


def _rotation_error(goal: jax.Array, rot: jax.Array) -> jax.Array:
    """Half the sum of axis cross products: the small-angle rotation vector from rot to goal [3]."""
    return 0.5 * jnp.sum(jnp.cross(rot.T, goal.T), axis=0)


def _rotation_matrix(vector: jax.Array) -> jax.Array:
    """Rotation matrix [3,3] of a rotation vector [3] (Rodrigues), safe at zero."""
    angle_sq = jnp.sum(vector**2)
    angle = jnp.sqrt(angle_sq + 1e-12)
    a, b = jnp.sin(angle) / angle, (1 - jnp.cos(angle)) / (angle_sq + 1e-12)
    x, y, z = vector
    zero = jnp.zeros_like(x)
    k = jnp.stack([jnp.stack([zero, -z, y]), jnp.stack([z, zero, -x]), jnp.stack([-y, x, zero])])
    return jnp.eye(3, dtype=vector.dtype) + a * k + b * (k @ k)
