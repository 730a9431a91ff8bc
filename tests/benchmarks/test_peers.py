"""What the peers write."""

import pytest

from lrm_jax.benchmarks import peers
from lrm_jax.rewards.tokenizer import IM_END


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        ("progress", '{ "completion_progress": 0.4 }'),
        ("completion", '{ "task_completed": "yes" }'),
        ("contrastive", '{ "more_complete_image": "ImageA" }'),
    ],
)
def test_the_peer_writes_as_many_tokens_as_the_released_answers_have(head, answer):
    """Counted in Qwen's own vocabulary."""
    ids, _ = peers.qwen_tokenizer().encode(answer + IM_END)
    assert len(ids) == peers.RELEASED_TOKENS[head]
