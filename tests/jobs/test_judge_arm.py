"""A published judge as the reward of refinement, from a checkpoint on the disk."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from doors import small_checkpoint

from lrm_jax.jobs.refine import RefineJob, model_facts, reward_function
from lrm_jax.jobs.reward_settings import RewardSettings
from lrm_jax.rewards.judges import load_judge
from lrm_jax.rl.ppo import PPOConfig
from lrm_jax.rl.refine import RefineConfig


def test_topreward_judges_the_frames_of_a_rollout(tmp_path):
    small_checkpoint(tmp_path / "judge")
    settings = RewardSettings(
        "topreward", judge=str(tmp_path / "judge"), transform="hold", interval=2
    )
    job = RefineJob(
        arms=("topreward",), reward=settings,
        refine=RefineConfig(iterations=2, num_envs=2, num_chunks=4, ppo=PPOConfig(minibatches=2)),
    )  # fmt: skip
    sentences = ("put the red cube on the blue plate", "put the green cube on the red plate")
    world = SimpleNamespace(env=SimpleNamespace(instructions=sentences, control_hz=20.0))
    reward = reward_function(job, "topreward", world, None)
    frames = np.random.default_rng(0).integers(0, 256, (5, 2, 64, 64, 3)).astype(np.uint8)
    rewards, facts = reward(jnp.asarray(frames), jnp.array([1, 0]), None)

    judge = load_judge("topreward", settings.judge)
    shown = np.moveaxis(frames[::2], 0, 1)
    judged = judge.score(shown, [sentences[1], sentences[0]], fps=20.0 / (job.policy.chunk * 2))
    value = judged.value.T
    expected = [np.zeros(2), value[1], value[1], value[2]]
    np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)
    assert np.asarray(facts["valid"]).all() and facts["judgements"] == 3 * 2
    assert job.judgements == 2 * 3 * 2 and job.judged_frames == 2 * 3 * 2
    assert model_facts(job, "topreward", None)["judge_sha256"]
