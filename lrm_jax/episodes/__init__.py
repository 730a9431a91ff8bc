"""Episodes: the one type that demonstrations, labels and evaluation share."""

from lrm_jax.episodes.episode import Episode

__all__ = ["Episode"]
