"""Episodes to training examples for the three reward heads. Pure numpy, deterministic by seed."""

from lrm_jax.labels.blanks import with_blanks
from lrm_jax.labels.clips import ClipSettings, HeldOut, make_clips, rewind, time_map
from lrm_jax.labels.examples import (
    ExampleSettings,
    PairExamples,
    StillExamples,
    pair_examples,
    sentences_of,
    still_examples,
)
from lrm_jax.labels.motion import PauseSettings, kept_frames
from lrm_jax.labels.store import KINDS, Clip, FrameStore

__all__ = [
    "KINDS",
    "Clip",
    "ClipSettings",
    "ExampleSettings",
    "FrameStore",
    "HeldOut",
    "PairExamples",
    "PauseSettings",
    "StillExamples",
    "kept_frames",
    "make_clips",
    "pair_examples",
    "rewind",
    "sentences_of",
    "still_examples",
    "time_map",
    "with_blanks",
]
