"""The arm against MuJoCo's C engine, and the controller against its own goal."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm_jax.envs import panda, put_on_plate
from lrm_jax.envs.controller import DeltaPoseController, Target, _rotation_matrix, _solve_spd

KINEMATICS = jax.jit(panda.forward_kinematics)


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(put_on_plate.mjcf(0.01))


def random_joints(seed):
    return np.random.default_rng(seed).uniform(panda.JOINT_LOW, panda.JOINT_HIGH)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_kinematics_and_jacobian_equal_those_of_mujoco(model, seed):
    q = random_joints(seed)
    data = mujoco.MjData(model)
    data.qpos[:7] = q
    mujoco.mj_forward(model, data)
    linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    mujoco.mj_jacSite(model, data, linear, angular, model.site("tcp").id)
    position, rotation, jacobian = KINEMATICS(jnp.asarray(q, jnp.float32))
    # float32 over a chain of eight rotations: a few 1e-7 of a metre's scale.
    np.testing.assert_allclose(position, data.site("tcp").xpos, atol=3e-6)
    np.testing.assert_allclose(rotation, data.site("tcp").xmat.reshape(3, 3), atol=3e-6)
    np.testing.assert_allclose(jacobian[:3], linear[:, :7], atol=5e-6)
    np.testing.assert_allclose(jacobian[3:], angular[:, :7], atol=5e-6)


def test_published_reach_and_ready_pose():
    position, rotation, _ = KINEMATICS(jnp.asarray(panda.READY, jnp.float32))
    # franka_ros has the ready pose's flange at (0.307, 0, 0.590); the TCP is 0.1034 below.
    np.testing.assert_allclose(position, [0.3069, 0.0, 0.4869], atol=5e-4)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_small_solver_equals_numpy(seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(6, 6))
    matrix = root @ root.T + 0.1 * np.eye(6)
    vector = rng.normal(size=6)
    with jax.enable_x64(True):
        found = _solve_spd(jnp.asarray(matrix), jnp.asarray(vector))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, vector), rtol=1e-8, atol=1e-10)


def test_controller_reaches_poses_in_its_workspace():
    controller = DeltaPoseController()
    home = jnp.asarray(panda.READY, jnp.float32)
    down = jnp.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
    step = jax.jit(controller.apply)
    rng = np.random.default_rng(3)
    for _ in range(5):
        goal = rng.uniform([0.36, -0.25, 0.03], [0.64, 0.25, 0.3])
        target = Target(jnp.array([0.46, 0.0, 0.2]), down, home, jnp.asarray(0.04))
        for _ in range(60):
            away = (goal - np.asarray(target.position)) / controller.max_translation
            target = step(target, jnp.asarray([*np.clip(away, -1, 1), 0, 0, 0, 1.0]), home)
        position, rotation, _ = KINEMATICS(target.joints)
        np.testing.assert_allclose(position, goal, atol=2e-3)
        np.testing.assert_allclose(rotation, down, atol=2e-2)


def test_rotation_actions_turn_about_base_axes():
    quarter = _rotation_matrix(jnp.array([0.0, 0.0, np.pi / 2]))
    np.testing.assert_allclose(quarter @ jnp.array([1.0, 0, 0]), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(_rotation_matrix(jnp.zeros(3)), np.eye(3), atol=1e-6)


def test_actions_outside_the_range_are_clipped():
    controller = DeltaPoseController()
    home = jnp.asarray(panda.READY, jnp.float32)
    start = Target(jnp.array([0.46, 0.0, 0.2]), jnp.eye(3), home, jnp.asarray(0.04))
    far = controller.apply(start, jnp.array([9.0, 0, 0, 0, 0, 0, 5.0]), home)
    one = controller.apply(start, jnp.array([1.0, 0, 0, 0, 0, 0, 1.0]), home)
    np.testing.assert_array_equal(far.position, one.position)
    np.testing.assert_array_equal(far.finger, one.finger)
