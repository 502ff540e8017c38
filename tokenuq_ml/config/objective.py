"""The keys `selected` and `rest` of an ablation: what is done with a set of tokens.

`training/objectives.py` has the functions behind the names.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tokenuq_ml.config import registry
from tokenuq_ml.config.base import Spec, function_or, one_of


class DistillSpec(Spec):
    """Matching of a teacher's distribution."""

    teacher: Annotated[str, one_of(registry.TEACHERS, "teacher")] = "baseline"
    divergence: Annotated[str, one_of(registry.DIVERGENCES, "divergence")] = "forward_kl"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    weight: Annotated[float, Field(ge=0)] = 1.0

    @property
    def is_linear_in_teacher(self) -> bool:
        """Whether the gradient is linear in the teacher's probabilities: forward KL at temperature 1.

        A mean embedding per token then replaces the teacher's distribution.
        """
        return self.divergence == "forward_kl" and self.temperature == 1


class ObjectiveSpec(Spec):
    """What is done with a set of tokens; `distill` is set for that kind only."""

    kind: Annotated[str, function_or(registry.OBJECTIVES, "objective")]
    distill: DistillSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value, "distill": {} if value == "distill" else None}
        if isinstance(value, dict) and set(value) == {"distill"}:
            return {"kind": "distill", "distill": value["distill"] or {}}
        return value

    @model_validator(mode="after")
    def _check_distill(self) -> Self:
        if (self.kind == "distill") != (self.distill is not None):
            raise ValueError(f"kind {self.kind!r} {'needs' if self.distill is None else 'takes no'} key 'distill'")
        return self

    @property
    def trains(self) -> bool:
        """Whether the tokens have a gradient."""
        return self.kind != "none" and (self.distill is None or self.distill.weight > 0)
