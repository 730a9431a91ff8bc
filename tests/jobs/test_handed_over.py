"""A refined policy is handed over only if its own reward rose."""

import numpy as np
import pytest

from lrm_jax.jobs.refine import handed_over, table


def outcomes(rate, seed):
    rng = np.random.default_rng(seed)
    return {"success_end": rng.random(400) < rate, "bad": np.arange(400) < 3 * (rate < 0.3)}


RISING = [{"reward_mean": 0.2 + 0.01 * i} for i in range(12)]
FALLING = RISING[::-1]


@pytest.mark.parametrize(("keep", "rows", "kept"), [
    (0.001, RISING, True), (0.001, FALLING, False), (1.0, FALLING, True),
    (0.001, RISING[:3], False),  # p of three rising ones is 1/6
])  # fmt: skip
def test_whose_episodes_count(keep, rows, kept):
    clone, refined = outcomes(0.6, 0), outcomes(0.2, 1)
    stages = ("base_policy_4", "refine_shuffled_4")
    chosen, row = handed_over(keep, rows, clone, refined, stages)
    assert chosen is (refined if kept else clone)
    assert row["kept"] is kept
    assert row["policy"] == f"stages/{stages[kept]}/policy.safetensors"
    loss = refined["success_end"].mean() - clone["success_end"].mean()
    np.testing.assert_allclose(row["gain"], loss if kept else 0.0, atol=1e-12)
    # what the reward did to the policy is told either way
    np.testing.assert_allclose(row["trained"]["gain"], loss, atol=1e-12)
    assert row["bad_episodes"] == 3
    assert kept or row["gain_interval"] == [0.0, 0.0]
    more = {"arm": "shuffled", "seed": 4, "judgements": 0, "stopped": None, "privileged": False}
    text = table([{**row, **more}])
    assert ("shuffled, seed 4: the reward did not rise" in text) is not kept
