"""The keys `selected` and `rest` of an ablation: what is done with a set of tokens.

`training/objectives.py` has the functions behind the names.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from tokenuq_ml.config import registry, user_code
from tokenuq_ml.config.base import Spec, function_or, one_of

DISTILL, NONE = "distill", "none"


class DistillSpec(Spec):
    """Matching of a teacher's distribution."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"top_k"})

    teacher: Annotated[str, one_of(registry.TEACHERS, "teacher")] = Field(
        default="baseline", description="whose distribution is matched"
    )
    divergence: Annotated[str, one_of(registry.DIVERGENCES, "divergence")] = Field(
        default="forward_kl", description="between teacher and student"
    )
    temperature: Annotated[float, Field(gt=0, description="of both distributions")] = 1.0
    weight: Annotated[float, Field(ge=0, description="of the divergence in the loss")] = 1.0
    top_k: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="keep only the teacher's K likeliest tokens, renormalised; default: all"
    )

    @model_validator(mode="after")
    def _check_top_k(self) -> Self:
        if self.top_k is not None and self.divergence == "reverse_kl":
            raise ValueError(
                "'top_k' gives the other tokens the probability 0, to which the reverse KL is infinite; use "
                "divergence 'forward_kl' or 'jsd'"
            )
        return self

    @property
    def is_linear_in_teacher(self) -> bool:
        """Whether the gradient is linear in the teacher's probabilities: forward KL at temperature 1.

        A mean embedding per token then replaces the teacher's distribution.
        """
        return self.divergence == "forward_kl" and self.temperature == 1 and self.top_k is None


class ObjectiveSpec(Spec):
    """What is done with a set of tokens: one kind of cross-entropy, `distill`, their sum, or nothing.

    Short forms are a name, `{name: {setting: value}}`, `{"distill": {...}}`, and a sum of both, as in
    `{"dft": {}, "distill": {"teacher": "base", "weight": 0.1}}`.
    """

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"settings"})

    kind: Annotated[str, function_or(registry.OBJECTIVES, "objective")] = Field(
        description="a weighted cross-entropy, `distill`, `none`, or your own `module:function`"
    )
    distill: DistillSpec | None = Field(
        default=None, description="settings of the divergence, alone or added to the cross-entropy"
    )
    settings: dict[str, float] = Field(default={}, description="the kind's numbers that differ from their defaults")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value, "distill": {} if value == DISTILL else None}
        if not isinstance(value, dict) or not value:
            return value
        return _without_defaults(value if "kind" in value else _full_form(value))

    @model_validator(mode="after")
    def _check_distill(self) -> Self:
        if self.kind == DISTILL and self.distill is None:
            raise ValueError("kind 'distill' needs key 'distill'")
        if self.kind == NONE and self.distill is not None:
            raise ValueError("'none' does not train the tokens; remove it, or remove 'distill'")
        if user_code.is_reference(self.kind) and self.distill is not None:
            raise ValueError(
                f"{self.kind!r} and 'distill' have no sum: let the function return Weights of both losses, and name "
                "'distill' for the other tokens"
            )
        if self.spec is not None and self.spec.splits and self.distill is None:
            raise ValueError(
                f"{self.kind!r} divides each token between cross-entropy and a divergence; add the key 'distill', as "
                f"in {{{self.kind}: {{}}, distill: {{}}}}"
            )
        return self

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        allowed = self.spec.settings if self.spec is not None else {}
        for name, number in self.settings.items():
            if name not in allowed:
                raise ValueError(f"{self.kind!r} has no setting {name!r}; allowed: {', '.join(allowed) or 'none'}")
            low, high = allowed[name].low, allowed[name].high
            if not low <= number <= high or number == float("inf"):
                raise ValueError(f"{name!r} of {self.kind!r} must be in [{low:g}, {high:g}], got {number:g}")
        return self

    @property
    def spec(self) -> registry.Objective | None:
        """What the registry says of its kind; None for a user's own function."""
        return registry.OBJECTIVES.get(self.kind)

    def setting(self, name: str) -> float:
        """Return a setting of the kind."""
        assert self.spec is not None
        return self.settings.get(name, self.spec.settings[name].default)

    @property
    def label(self) -> str:
        """The name in tables: the kind, or both kinds of a sum."""
        return f"{self.kind}+{DISTILL}" if self.is_sum else self.kind

    @property
    def text(self) -> str:
        """The label with the settings that differ from their defaults, as in `focal (gamma 1)`."""
        settings = ", ".join(f"{name} {number:g}" for name, number in self.settings.items())
        return f"{self.label} ({settings})" if settings else self.label

    @property
    def is_sum(self) -> bool:
        """Whether each token has both a cross-entropy and a divergence."""
        return self.kind != DISTILL and self.distill is not None

    @property
    def trains(self) -> bool:
        """Whether the tokens have a gradient."""
        return self.kind != NONE and (self.kind != DISTILL or (self.distill is not None and self.distill.weight > 0))


def _full_form(value: dict[str, Any]) -> dict[str, Any]:
    """Return the keys `kind`, `settings` and `distill` of a short form."""
    kinds = [name for name in value if name != DISTILL]
    if len(kinds) > 1:
        raise ValueError(
            f"{' and '.join(map(repr, kinds))}: a sum has one objective with the label and 'distill'; name one"
        )
    for name, settings in value.items():
        if settings is not None and not isinstance(settings, dict):
            allowed = registry.OBJECTIVES[name].settings if name in registry.OBJECTIVES else {}
            example = f"{{{name}: {{{next(iter(allowed), 'weight')}: 1}}}}"
            raise ValueError(f"{name!r}: settings are a mapping, as in {example}, not {settings!r}")
    distill = {DISTILL: value[DISTILL] or {}} if DISTILL in value else {}
    return {"kind": kinds[0], "settings": value[kinds[0]] or {}, **distill} if kinds else {"kind": DISTILL, **distill}


def _without_defaults(value: dict[str, Any]) -> dict[str, Any]:
    """Return the keys without settings that have their default, so that writing one down changes no version."""
    settings, known = value.get("settings"), registry.OBJECTIVES.get(str(value["kind"]))
    if known is None or not isinstance(settings, dict):
        return value
    default = {name: setting.default for name, setting in known.settings.items()}
    return {**value, "settings": {name: number for name, number in settings.items() if number != default.get(name)}}
