"""Decisions of either head during a rollout: what is done, and what the update needs of it."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lrm_jax.policies.networks import Policy, PolicyOutput, Variables

_START = 0x666C6F77  # apart from the streams that an environment draws from its reset key


@flax.struct.dataclass
class Decision:
    """One decision of N environments.

    actions float32 [N,C,A]; log_probs float32 [N], of the chunks or, with the flow head, of their
    denoise chains. mean [N,C,A] and log_std: of the chunk's distribution, [A]; with the flow head
    of the last denoise step, [N,A]. chain float32 [N,K+1,C,A], flow head only.
    """

    actions: jax.Array
    log_probs: jax.Array
    mean: jax.Array
    log_std: jax.Array
    chain: jax.Array | None = None


def decide(
    policy: Policy,
    variables: Variables,
    output: PolicyOutput,
    proprio: jax.Array,
    noise: jax.Array,
    deterministic: jax.Array | bool,
    keys: jax.Array,
    t: jax.Array | int,
) -> Decision:
    """Draws (or, if deterministic, takes) the chunks that follow from what the policy saw.

    Args:
      output: of the policy for these N environments; proprio float32 [N,P].
      noise: key of the exploration noise, and of the flow's starting points when it explores.
      deterministic: bool []; the Gaussian head's mean, the flow head's noise-free Euler solution.
      keys: [N] reset keys; with t, the number of the decision, they set where a deterministic flow
        starts (unless flow.start is "zero"), so that an episode does not depend on its batch.
    """
    c = policy.config
    if c.head == "gaussian":
        chosen = output.distribution
        actions = jnp.where(deterministic, chosen.mode(), chosen.sample(noise))
        return Decision(actions, chosen.log_prob(actions), chosen.mean, chosen.log_std)
    start_key, step_key = jax.random.split(noise)
    shape = (c.chunk, c.action_size)
    start = jax.random.normal(start_key, (len(keys), *shape))
    if c.flow.start == "zero":
        fixed = jnp.zeros_like(start)
    else:

        def own(key):
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, _START), t), shape)

        fixed = jax.vmap(own)(keys)
    start = jnp.where(deterministic, fixed, start)
    chain, chosen = policy.apply(
        variables, output.features, proprio, start, step_key, deterministic, method="denoise"
    )
    last = chosen.mean[:, -1], chosen.log_std[:, -1]
    return Decision(chain[:, -1], chosen.log_prob(chain), *last, chain)
