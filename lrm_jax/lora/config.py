"""What an adapter is made of: ranks, scales and the modules it reaches, read as PEFT reads them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from lrm_jax.run.errors import UserError, did_you_mean

ALL_LINEAR = "all-linear"

# Our field for each field of PEFT's that is supported.
_FIELDS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "exclude_modules": "exclude",
    "use_rslora": "rslora",
    "lora_dropout": "dropout",
    "modules_to_save": "modules_to_save",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "layers_to_transform": "layers",
    "layers_pattern": "layers_pattern",
}
# What PEFT writes beside them without an effect on the adapter's outputs, or where only the value
# given here has none.
_NO_EFFECT = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "megatron_core qalora_group_size runtime_config eva_config".split()
)
# These initialisers change the base weights, so their factors mean nothing over the released ones.
_HARMLESS_INIT = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (arXiv 2106.09685): W + s A B with s = alpha / rank.

    Module names are those of the checkpoint ("model.language_model.layers.0.self_attn.q_proj"), and
    all patterns are matched against them by PEFT's rules.

    rank, alpha: of modules that no pattern names. rslora: s = alpha / sqrt(rank), arXiv 2312.03732.
    targets: modules with factors: names, each matched whole or as a suffix behind a dot; or one
      regular expression for whole names; or "all-linear": every linear map but the output layer.
    exclude: modules to leave out, written likewise.
    dropout: share of the side path's inputs that training drops.
    modules_to_save: modules that the adapter replaces by full weights of its own; a module is meant
      if its name ends so.
    rank_pattern, alpha_pattern: rank and alpha by module, {regular expression for the end of the
      name: number}; the first that matches holds.
    layers, layers_pattern: the only layers with factors (with a list of targets), and the name of
      the list they are in.

    Raises UserError naming the field for values that make no sense.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] | str = ALL_LINEAR
    exclude: tuple[str, ...] | str = ()
    rslora: bool = False
    dropout: float = 0.0
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("targets", "exclude"):
            object.__setattr__(self, name, _names(getattr(self, name), name, expression=True))
        for name in ("modules_to_save", "layers_pattern"):
            object.__setattr__(self, name, _names(getattr(self, name), name))
        if isinstance(self.layers, int) and not isinstance(self.layers, bool):
            object.__setattr__(self, "layers", (self.layers,))
        elif self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers) or None)
        for name in ("rank_pattern", "alpha_pattern"):
            object.__setattr__(self, name, dict(getattr(self, name) or {}))
        ranks = {"rank": self.rank} | {f"rank_pattern {k}": v for k, v in self.rank_pattern.items()}
        for name, value in ranks.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} is {value!r}: it must be a whole number above 0")
        alphas = {"alpha": self.alpha}
        alphas |= {f"alpha_pattern {k}": v for k, v in self.alpha_pattern.items()}
        for name, value in alphas.items():
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise UserError(f"{name} is {value!r}: it must be a number above 0")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout!r}: it must be at least 0 and below 1")
        if not self.targets:
            raise UserError("targets is empty: name the modules that get factors")
        if isinstance(self.targets, str) and self.layers is not None:
            raise UserError("layers: only with targets given as a list of names, as in PEFT")
        expressions = [*self.rank_pattern, *self.alpha_pattern, *self.layers_pattern]
        expressions += [v for v in (self.targets, self.exclude) if isinstance(v, str)]
        for text in expressions:
            try:
                re.compile(text)
            except re.error as error:
                raise UserError(f"{text!r} is no regular expression ({error})") from None

    def rank_of(self, module: str) -> int:
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank, alpha = self.rank_of(module), _by_pattern(self.alpha_pattern, module, self.alpha)
        return float(alpha / math.sqrt(rank) if self.rslora else alpha / rank)

    def targets_module(self, module: str, linear: bool = True) -> bool:
        """Whether the module called so gets factors.

        linear: whether "all-linear" means it (not a convolution, nor the output layer).
        """
        if _listed(self.exclude, module) or self._is_within_saved(module):
            return False
        if isinstance(self.targets, str):
            if self.targets.lower() == ALL_LINEAR:
                return linear
            return re.fullmatch(self.targets, module) is not None
        # As PEFT: a name given in full is meant whatever its layer.
        if module in self.targets:
            return True
        return _listed(self.targets, module) and self._is_in_layers(module)

    def saves(self, tensor: str) -> bool:
        """Whether `modules_to_save` names a module that holds the tensor called so."""
        parts = tensor.split(".")
        modules = [".".join(parts[:i]) for i in range(1, len(parts))]
        return any(m.endswith(saved) for m in modules for saved in self.modules_to_save)

    def _is_within_saved(self, module: str) -> bool:
        return any(re.match(rf"(^|.*\.){m}($|\..*)", module) for m in self.modules_to_save)

    def _is_in_layers(self, module: str) -> bool:
        if self.layers is None:
            return True
        if not self.layers_pattern:
            found = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        else:
            tries = (re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", module) for p in self.layers_pattern)
            found = next((t for t in tries if t), None)
        return found is not None and int(found[1]) in self.layers

    @classmethod
    def from_peft(cls, raw: Mapping[str, Any], where: str = "adapter_config.json") -> LoraConfig:
        """From the object in PEFT's `adapter_config.json`.

        Raises:
          UserError: naming `where` and the field: not LoRA, a feature that is not supported (DoRA,
            trained biases or tokens, replicated layers, initialisers that change the base, ...), a
            value that makes no sense.
        """
        kind = raw.get("peft_type", "LORA")
        if kind != "LORA":
            raise UserError(f"{where}: peft_type is {kind!r}; only LORA is supported")
        for name in ("r", "lora_alpha", "target_modules"):
            if raw.get(name) is None:
                raise UserError(f"{where}: {name} is missing; it cannot be guessed")
        for name, value in raw.items():
            if name in _FIELDS or name in _NO_EFFECT or value in (None, False, {}, []):
                continue
            if name == "bias" and value == "none":
                continue
            if name == "init_lora_weights" and value in _HARMLESS_INIT:
                continue
            raise UserError(
                f"{where}: {name} = {value!r} is not supported; merge the adapter with PEFT"
            )
        given = {
            ours: raw[theirs] for theirs, ours in _FIELDS.items() if raw.get(theirs) is not None
        }
        try:
            return cls(**given)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def to_peft(self, base_model: str | None = None) -> dict[str, Any]:
        """The object for `adapter_config.json`. base_model: name or folder of what it adapts."""
        plain = {theirs: getattr(self, ours) for theirs, ours in _FIELDS.items()}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
        for name in ("exclude_modules", "modules_to_save", "layers_pattern"):
            plain[name] = plain[name] or None
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "use_dora": False,
            **plain,
        }


def _by_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _listed(given: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(given, str):
        return re.fullmatch(given, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in given)


def _names(value: Any, field: str, expression: bool = False) -> tuple[str, ...] | str:
    if isinstance(value, str):
        return value if expression else (value,)
    if value is None:
        return ()
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(
        isinstance(v, str) and v for v in value
    ):
        raise UserError(f"{field} is {value!r}: give a list of names")
    return tuple(sorted(value) if isinstance(value, (set, frozenset)) else value)


def no_match(field: str, wanted: tuple[str, ...] | str, modules: list[str]) -> UserError:
    """The error for names that no module of the model has."""
    wanted = wanted if isinstance(wanted, str) else ", ".join(wanted)
    parts = sorted({p for m in modules for p in m.split(".") if not p.isdigit()})
    return UserError(f"{field}: the model has no module {wanted!r}; {did_you_mean(wanted, parts)}")
