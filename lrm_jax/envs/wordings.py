"""Several ways to say a task, some of which training never hears."""

import dataclasses

from lrm_jax.run.errors import UserError, did_you_mean

CHOICES = ("plain", "train", "held_out", "all")


@dataclasses.dataclass(frozen=True)
class Wordings:
    """Templates of one task's sentences; {0}, {1} are the colours that it says.

    plain: the one that is used unless wordings vary. train: further ones to train with. held_out:
    those kept for evaluation.
    """

    plain: str
    train: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    def table(self, choice: str) -> tuple[str, ...]:
        """The templates that task ids count: all, so that policies keep their table of sentences
        from training to held-out wordings; only the plain one where wordings do not vary."""
        if choice not in CHOICES:
            raise UserError(f"wordings={choice!r} is unknown: {did_you_mean(choice, CHOICES)}")
        return (self.plain,) if choice == "plain" else (self.plain, *self.train, *self.held_out)

    def in_use(self, choice: str) -> tuple[int, ...]:
        """Indices into `table` of the templates that are spoken."""
        count, known = len(self.table(choice)), 1 + len(self.train)
        return tuple(range(known if choice == "held_out" else 0,
                           known if choice == "train" else count))  # fmt: skip
