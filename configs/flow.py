"""The quickstart with the flow head: a flow-matching action expert, refined through its noise.

    python -m lrm_jax.train --config=configs/flow.py

As pi0.5 is refined in the paper: 4 denoise steps, PPO on the joint log-probability of the chain.
The argument "small" runs the same stages with a few episodes and iterations (a smoke test). The
figures of the quickstart are of the Gaussian head; these settings have not been tuned.
"""

from ml_collections import ConfigDict

from lrm_jax.run.config import sibling


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart's settings with the flow head."""
    config = sibling(__file__, "quickstart").get_config(arg)
    config.policy.head = "flow"
    config.policy.flow = {"steps": 4, "start": "noise", "logprob": "sum"}
    config.clone.until = config.clone.ema = None  # all epochs, and the best of them
    if arg != "small":
        config.demonstrations.episodes, config.clone.epochs, config.clone.lr = 128, 30, 2e-3
    config.clone.flow_times = "beta"
    config.clone.keep = "last" if arg == "small" else "best"
    # The KL divergence of a chain is the sum of its steps'.
    config.refine.ppo.target_kl = 0.02 * config.policy.flow.steps
    return config
