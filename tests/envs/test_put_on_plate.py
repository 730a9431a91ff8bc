"""PutOnPlate: what reset draws, what counts as success, and what the demonstrator achieves."""

import itertools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from lrm_jax import envs
from lrm_jax.envs import expert
from lrm_jax.envs.put_on_plate import (
    COLOURS,
    CUBE_HALF,
    HELD_OUT_PAIRS,
    MIN_GAP,
    PLATE_RADIUS,
    scenes,
)
from lrm_jax.run.errors import UserError

COUNT = 32


@pytest.fixture(scope="module")
def env():
    return envs.make("PutOnPlate")


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(jax.vmap(env.step))


@pytest.fixture(scope="module")
def state(env):
    return jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), COUNT))


def one(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def with_cube(env, state, position, finger=0.04):
    """The state with the named cube at `position` and the gripper commanded to `finger`."""
    cube = int(state.info["named"][0])
    address = env.mj_model.joint(f"cube{cube}").qposadr[0]
    qpos = state.data.qpos.at[address : address + 3].set(jnp.asarray(position))
    target = state.info["target"].replace(finger=jnp.asarray(finger))
    data = mjx.kinematics(env.model, state.data.replace(qpos=qpos))
    return state.replace(data=data, info=dict(state.info, target=target))


def test_no_training_scene_holds_a_held_out_pair():
    held = {(COLOURS.index(a), COLOURS.index(b)) for a, b in HELD_OUT_PAIRS}
    train, test = scenes("train"), scenes("held_out")
    for row in train:
        assert not held & set(itertools.product(row[:2], row[2:]))
    for row in test:
        assert set(itertools.product(row[:2], row[2:])) <= held
    # Every colour occurs on cubes and on plates: what is new in the test is the combination.
    assert set(train[:, :2].ravel()) == set(train[:, 2:].ravel()) == set(range(len(COLOURS)))


def test_unknown_names_and_settings_are_user_errors():
    for make in (
        lambda: envs.make("PutOnPlates"),
        lambda: envs.make("PutOnPlate", combos="most"),
        lambda: envs.make("PutOnPlate", combo="train"),
    ):
        with pytest.raises(UserError):
            make()


def test_reset_keeps_gaps_and_names_what_is_there(env, state):
    places = np.asarray(state.info["start_places"])
    gaps = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1) + 10 * np.eye(4)
    assert gaps.min() > MIN_GAP
    for i in range(COUNT):
        colours, named = (np.asarray(state.info[k][i]) for k in ("colours", "named"))
        sentence = env.instructions[int(state.info["task_id"][i])]
        assert sentence == env.sentence(colours[named[0]], colours[2 + named[1]])
        assert sentence in env.sentences_in_use()
    assert len({int(t) for t in state.info["task_id"]}) == 4
    assert not np.asarray(state.metrics["success"]).any()


def test_reset_is_a_function_of_its_key(env, state):
    again = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), COUNT))
    for a, b in zip(
        jax.tree.leaves(state.data.qpos), jax.tree.leaves(again.data.qpos), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_colours_of_the_scene_are_those_of_the_sentence(env, state):
    model, _ = env.scene(one(state, 0))
    rgba = np.asarray(model.geom_rgba)
    named = np.asarray(state.info["named"][0])
    words = env.instructions[int(state.info["task_id"][0])].split()
    cube = rgba[env.mj_model.geom(f"cube{named[0]}").id]
    assert (words[2] == "red" and cube[0] > cube[1]) or (words[2] == "green" and cube[1] > cube[0])


def test_success_needs_place_rest_and_an_open_gripper(env, state):
    first = one(state, 0)
    plate = np.asarray(first.data.mocap_pos[int(first.info["named"][1])])
    other = np.asarray(first.data.mocap_pos[1 - int(first.info["named"][1])])

    def judge(position, finger=0.04):
        facts = env.facts(with_cube(env, first, position, finger))
        return bool(facts["success"]), float(facts["progress"])

    assert judge([plate[0], plate[1], CUBE_HALF]) == (True, 1.0)
    assert judge([plate[0], plate[1], CUBE_HALF], finger=0.0)[0] is False
    assert judge([plate[0], plate[1], CUBE_HALF + 0.05])[0] is False
    assert judge([plate[0] + PLATE_RADIUS, plate[1], CUBE_HALF])[0] is False
    assert judge([other[0], other[1], CUBE_HALF])[0] is False


def test_facts_can_judge_by_another_sentence(env, state):
    first = one(state, 0)
    named = np.asarray(first.info["named"])
    plate = np.asarray(first.data.mocap_pos[named[1]])
    done = with_cube(env, first, [plate[0], plate[1], CUBE_HALF])
    assert bool(env.facts(done)["success"])
    for pair in itertools.product(range(2), range(2)):
        expected = pair == tuple(named)
        assert bool(env.facts(done, jnp.array(pair))["success"]) is expected


def test_actions_move_the_tool_along_their_axes_and_compile_once(env, state, step):
    before = np.asarray(state.data.site_xpos[:, env.mj_model.site("tcp").id])
    for axis in range(3):
        action = jnp.zeros((COUNT, 7)).at[:, axis].set(0.5).at[:, 6].set(1.0)
        moved = state
        for _ in range(4):
            moved = step(moved, action)
        after = np.asarray(moved.data.site_xpos[:, env.mj_model.site("tcp").id])
        gone = after - before
        # Four steps of half the largest move; the servo lags a little behind its target.
        assert (gone[:, axis] > 0.6 * 4 * 0.5 * env.controller.max_translation).all()
        assert (np.abs(np.delete(gone, axis, 1)) < 0.02).all()
    assert step._cache_size() == 1
    assert float(moved.info["step"][0]) == 4 and not np.asarray(moved.done).any()


def test_free_motion_follows_mujocos_c_engine(env, state, step):
    """The same servo targets through both engines, away from contact with cubes."""
    data = mujoco.MjData(env.mj_model)
    data.qpos[:] = np.asarray(state.data.qpos[0])
    data.mocap_pos[:] = np.asarray(state.data.mocap_pos[0])
    mujoco.mj_forward(env.mj_model, data)
    moved, rng = state, np.random.default_rng(1)
    for _ in range(10):
        action = np.append(rng.uniform(-0.6, 0.6, 6), 1.0)
        action[2] = abs(action[2])
        moved = step(moved, jnp.broadcast_to(jnp.asarray(action, jnp.float32), (COUNT, 7)))
        data.ctrl[:] = np.asarray(moved.data.ctrl[0])
        for _ in range(env.config.substeps):
            mujoco.mj_step(env.mj_model, data)
    # float32 against float64 over 50 steps of stiff servos: tenths of a millimetre at the tool.
    np.testing.assert_allclose(moved.data.qpos[0, :9], data.qpos[:9], atol=2e-3)


@pytest.mark.slow
def test_demonstrator_succeeds_and_fails_as_told(env, step):
    config = expert.DemonstratorConfig()
    count = 128
    modes = np.where(np.arange(count) < 96, expert.SUCCESS, np.arange(count) % 6 + 1)

    @jax.jit
    def play(key, modes):
        k_reset, k_plan = jax.random.split(key)
        state = jax.vmap(env.reset)(jax.random.split(k_reset, count))
        plan = jax.vmap(lambda k, m: expert.begin(k, m, config))(
            jax.random.split(k_plan, count), modes
        )

        def control(carry, _):
            state, plan = carry
            action, plan = jax.vmap(lambda s, p: expert.act(env, s, p, config))(state, plan)
            return (jax.vmap(env.step)(state, action), plan), None

        (state, _), _ = jax.lax.scan(control, (state, plan), None, length=env.episode_length)
        return state.metrics["success"], state.done

    success, done = play(jax.random.key(5), jnp.asarray(modes, jnp.int32))
    success = np.asarray(success) > 0.5
    assert np.asarray(done).all()
    # A demonstrator of 95 % gets 87 or more of 96 right with probability 0.98 (binomial).
    assert success[modes == expert.SUCCESS].sum() >= 87
    wrong = np.isin(modes, [expert.WRONG_CUBE, expert.WRONG_PLATE, expert.MISS, expert.NEAR_MISS])
    assert success[wrong].mean() <= 0.1
