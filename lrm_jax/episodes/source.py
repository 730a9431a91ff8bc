"""What all readers are: indexable, cheap to open, nothing decoded until it is asked for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lrm_jax.episodes.episode import Episode
from lrm_jax.run.config import field
from lrm_jax.run.errors import UserError, did_you_mean

FORMATS = ("rlds", "lerobot", "hdf5", "videos")
# Names under which data sets keep the third-person camera, best first.
CAMERAS = (
    "image", "image_0", "agentview_rgb", "agentview_image", "robot0_agentview_left_image",
    "rgb_static", "front_rgb", "exterior_image_1_left", "image_primary", "image_1", "rgb",
    "front", "top", "exterior",
)  # fmt: skip
# Names of the sentence.
SENTENCES = (
    "language_instruction", "natural_language_instruction", "instruction", "task", "language",
    "language_instruction_0",
)  # fmt: skip


class Source(Protocol):
    """Episodes by number: `len(source)`, `source[i] -> Episode`, `source.id(i) -> str`.

    `source[i]` raises BrokenEpisode for an episode that cannot be used. name: of the source.
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Episode: ...

    def id(self, i: int) -> str:
        """What the data set itself calls episode `i`."""
        ...


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """One data set on disk, and how its episodes are read.

    name: what reports and `Episode.source` call it. path: its folder or file. format: one of
      FORMATS, found out if empty. split: the data set's own name of it, with a part if wished:
      "train", "train[:90%]", "train[100:200]".
    camera: the image key; if empty the first of CAMERAS that is there, or the only one. sentence:
      the key of the sentence; if empty the first of SENTENCES. task: the sentence itself, for data
      sets without. success: the key that says whether an episode succeeded, or at each step whether
      it is done (a flag or a sparse reward), if any.
    fps: frames per second where the data set does not say; elsewhere it must agree.
    demonstrations: episodes that do not say whether they succeeded did.
    trim_end: share of each success's frames that is cut off its end, because demonstrations do not
      end at success; not where the data set itself says when the task was done.
    flip: pictures are stored upside down (robosuite's renderer does that).
    weight: share of draws in a mixture. note: for people.
    """

    name: str
    path: str
    format: str = field("", choices=("", *FORMATS))
    split: str = "train"
    camera: str = ""
    sentence: str = ""
    task: str = ""
    success: str = ""
    fps: float = field(0.0, ge=0)
    demonstrations: bool = True
    trim_end: float = field(0.0, ge=0, lt=1)
    flip: bool = False
    weight: float = field(1.0, gt=0)
    note: str = ""


def chosen(
    wanted: str,
    there: Sequence[str],
    known: Sequence[str],
    what: str,
    where: str,
    guess: bool = True,
) -> str:
    """The key to read: `wanted`, or else the first of `known` that is `there`, or (`guess`) the
    only one.

    Keys match by full path or by their last part ("image" for "steps/observation/image").

    Raises:
      UserError: nothing fits; it lists what is there.
    """
    for name in [wanted] if wanted else known:
        if name in there:
            return name
        fits = [key for key in there if re.split(r"[/.]", key)[-1] == name]
        if len(fits) == 1:
            return fits[0]
        if fits and wanted:
            raise UserError(f"{where}: {what} {wanted!r} may be {' or '.join(fits)}: name it whole")
        if fits:
            return fits[0]
    if not there:
        raise UserError(f"{where}: there is no {what} in it")
    if wanted:
        raise UserError(f"{where}: no {what} {wanted!r}; {did_you_mean(wanted, there)}")
    if guess and len(there) == 1:
        return there[0]
    raise UserError(
        f"{where}: which {what} to read is not clear: name one of {', '.join(sorted(there))}"
    )


def split_range(split: str, lengths: Mapping[str, int], where: str) -> tuple[str, range]:
    """The name of a split and the numbers of its episodes: "train", "train[:90%]", "train[5:20]".

    lengths: the splits that are there.
    Raises:
      UserError: unknown or empty, or not written so.
    """
    found = re.fullmatch(r"([^\[\]]+)(?:\[(-?\d*%?):(-?\d*%?)\])?", split)
    if not found:
        raise UserError(f"{where}: split {split!r} is not written as train, train[:90%] or [5:20]")
    name, begin, end = found.groups()
    if name not in lengths:
        raise UserError(f"{where}: no split {name!r}; {did_you_mean(name, lengths)}")
    count = lengths[name]

    def place(text: str | None, otherwise: int) -> int:
        if not text:
            return otherwise
        number = int(text.rstrip("%"))
        return round(number * count / 100) if text.endswith("%") else number

    numbers = range(count)[place(begin, 0) : place(end, count)]
    if not numbers:
        raise UserError(f"{where}: split {split!r} holds no episode ({name} has {count})")
    return name, numbers


def rate(stated: float, own: float | None, where: str) -> float:
    """Frames per second: what the data set says of itself (`own`), or else `stated`.

    Raises:
      UserError: neither, or they disagree by more than 1 %.
    """
    if not own:
        if not stated:
            raise UserError(f"{where}: the data set does not say its rate: give fps")
        return float(stated)
    if stated and abs(stated / own - 1) > 0.01:
        raise UserError(f"{where}: fps {stated:g} is given, but the data set says {own:g}")
    return float(own)


def facts(settings: SourceSettings) -> dict[str, Any]:
    """What every episode of a source has in `meta`."""
    return {"trim_end": settings.trim_end}


def verdict(settings: SourceSettings, said: Any, frames: int) -> tuple[bool | None, dict[str, Any]]:
    """Whether an episode succeeded, and {"success_frame": first frame at which it is done}, if the
    data set says so.

    said: what the data set says: one value, or one for each frame (success flags, sparse rewards:
      done where positive), or None. A flag at the last frame alone marks the end of the episode and
      is no success frame.
    """
    if said is None:
        return (True if settings.demonstrations else None), {}
    done = np.asarray(said).reshape(-1) > 0
    if len(done) == frames > 1 and done[:-1].any():
        return True, {"success_frame": int(np.argmax(done))}
    return bool(done[-1]), {}
