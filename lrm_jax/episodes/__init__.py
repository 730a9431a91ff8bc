"""Episodes: the one type that demonstrations, labels and evaluation share, and its readers."""

from lrm_jax.episodes.broken import BrokenEpisode
from lrm_jax.episodes.episode import Episode
from lrm_jax.episodes.frames import LazyFrames
from lrm_jax.episodes.opening import open_source
from lrm_jax.episodes.quarantine import Limit, Quarantine
from lrm_jax.episodes.source import Source, SourceSettings

__all__ = [
    "BrokenEpisode",
    "Episode",
    "LazyFrames",
    "Limit",
    "Quarantine",
    "Source",
    "SourceSettings",
    "open_source",
]
