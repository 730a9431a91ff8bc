"""Which activations the backward pass keeps: a configuration string, applied to each layer."""

from __future__ import annotations

import flax.linen as nn
import jax

from lrm_jax.run.errors import UserError

# "none" keeps everything, "full" keeps each layer's input, "dots" also the results of its weight
# products.
POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def rematerialised(module: type[nn.Module], remat: str, *, scanned: bool) -> type[nn.Module]:
    """The module class under the policy.

    Inside a scan the barrier against common-subexpression elimination only costs time.
    """
    if remat == "none":
        return module
    if remat not in POLICIES:
        raise UserError(f"remat: {remat!r} is none of 'none', 'full', 'dots'")
    return nn.remat(module, policy=POLICIES[remat], prevent_cse=not scanned)
