"""A policy on the disk, with all that is needed to use it again: settings, words and variables.

    FOLDER/policy.json      settings of the network, vocabulary, sentences of the task ids
    FOLDER/step_000000/     the variables, through Orbax, with a checksum
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrm_jax.policies.config import PolicyConfig
from lrm_jax.policies.networks import Policy, Variables, init_variables
from lrm_jax.policies.vocabulary import Vocabulary
from lrm_jax.run import atomic, config
from lrm_jax.run.checkpoints import Checkpoints
from lrm_jax.run.errors import UserError

_FACTS = "policy.json"
_FORMAT = "lrm_jax policy 1"


def save_policy(
    folder: str | os.PathLike[str], policy: Policy, vocabulary: Vocabulary, variables: Variables
) -> None:
    """Writes a policy to `folder` (made if missing; a policy already there is replaced)."""
    folder = Path(folder)
    facts = {
        "format": _FORMAT,
        "config": config.to_dict(policy.config),
        "proprio_size": policy.proprio_size,
        "words": list(vocabulary.words),
        "length": vocabulary.length,
        "sentences": _sentences(vocabulary, variables),
    }
    with Checkpoints(folder, facts, keep=1) as checkpoints:
        checkpoints.save(0, variables)
    atomic.write_json(folder / _FACTS, facts)


def load_policy(folder: str | os.PathLike[str]) -> tuple[Policy, Vocabulary, Variables]:
    """The policy that `save_policy` wrote, bit for bit.

    Raises:
      UserError: the folder holds none, or one that is damaged or from another version.
    """
    folder = Path(folder)
    if not (folder / _FACTS).is_file():
        raise UserError(f"{folder} holds no policy: it has no {_FACTS}")
    try:
        facts = atomic.read_json(folder / _FACTS)
        if facts["format"] != _FORMAT:
            raise UserError(f"{folder / _FACTS} has the format {facts['format']!r}, not {_FORMAT}")
        vocabulary = Vocabulary(tuple(facts["words"]), facts["length"])
        network = config.build(PolicyConfig, facts["config"], key=str(folder / _FACTS))
        policy = Policy(network, vocabulary.size, facts["proprio_size"])
        sentences = facts["sentences"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / _FACTS} is damaged ({error!r})") from error
    like = jax.eval_shape(
        lambda key: init_variables(policy, key, vocabulary, sentences), jax.random.key(0)
    )
    with Checkpoints(folder, facts) as checkpoints:
        found = checkpoints.latest_valid(like)
    if found is None:
        raise UserError(f"{folder} holds no whole policy made with the settings in its {_FACTS}")
    return policy, vocabulary, jax.tree.map(jnp.asarray, found.state)


def _sentences(vocabulary: Vocabulary, variables: dict[str, Any]) -> list[str]:
    """The sentences of the task ids, word by word as the policy reads them."""
    tokens = np.asarray(variables["tasks"]["tokens"])
    return [" ".join(vocabulary.words[i - 1] for i in row if i > 0) for row in tokens]
