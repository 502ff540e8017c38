"""The key `select` of an ablation: which response tokens get the objective `selected`.

`training/selectors.py` has the functions behind the names.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tokenuq_ml.config import registry
from tokenuq_ml.config.base import Spec, function_or


class Schedule(Spec):
    """A number that changes linearly over the optimiser steps."""

    start: float = Field(description="value at the first step")
    end: float = Field(description="value at the last step")

    def at(self, progress: float) -> float:
        """Return the value at `progress`, the share of training done: 0 at the first step, 1 at the last."""
        return self.start + (self.end - self.start) * progress


class SelectSpec(Spec):
    """The rule that decides which response tokens get the objective `selected`."""

    by: Annotated[str, function_or(registry.SELECTORS, "selector")] = Field(
        description="score by which tokens are selected, or your own `module:function`; `all`: every token"
    )
    keep: Literal["top", "bottom", "above", "below"] = Field(
        default="top", description="top, bottom: a quantile; above, below: scores above, or at most, a threshold"
    )
    quantile: Annotated[float, Field(gt=0, le=1)] | Schedule | None = Field(
        default=None, description="k = ceil(quantile * N); default: 1"
    )
    threshold: float | Schedule | Literal["teacher_mean"] | None = Field(
        default=None, description="in the score's units; teacher_mean: the teacher's mean loss on the train split"
    )
    unit: Literal["token", "document"] = Field(
        default="token", description="document: complete examples, by the mean score of their tokens"
    )
    scope: Literal["batch", "dataset"] = Field(
        default="batch",
        description="batch: among an optimiser batch, by the student; dataset: among the train split, by the teacher",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_quantile(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("keep", "top") in ("top", "bottom"):
            return {"quantile": 1.0, **value}
        return value

    @model_validator(mode="after")
    def _check_amount(self) -> Self:
        if not self.by_quantile:
            if self.threshold is None or self.quantile is not None:
                raise ValueError(f"keep {self.keep!r} needs 'threshold', and no 'quantile'")
        elif self.threshold is not None or self.quantile is None:
            raise ValueError(f"keep {self.keep!r} needs 'quantile', and no 'threshold'")
        if isinstance(self.quantile, Schedule) and not all(
            0 < share <= 1 for share in (self.quantile.start, self.quantile.end)
        ):
            raise ValueError("'quantile': 'start' and 'end' of the schedule must be above 0 and at most 1")
        return self

    @model_validator(mode="after")
    def _check_scope(self) -> Self:
        if self.scope == "dataset":
            if isinstance(self.quantile, Schedule) or isinstance(self.threshold, Schedule):
                raise ValueError("scope 'dataset' selects once, before training: a schedule needs scope 'batch'")
            score = registry.SELECTORS.get(self.by)
            # By the loss too, but the teacher's takes its place.
            reads_student = score is not None and score.of_student and self.by != "loss"
            if self.by == "random" or reads_student:
                raise ValueError(
                    f"scope 'dataset' selects once, before training, and {self.by!r} changes at each step: "
                    "use scope 'batch'"
                )
        return self

    @property
    def takes_all(self) -> bool:
        """Whether every token is selected, by the selector `all`."""
        return self.by == "all"

    @property
    def is_partial(self) -> bool:
        """Whether the rule can leave tokens out."""
        return not self.takes_all and self.quantile != 1

    @property
    def by_quantile(self) -> bool:
        """Whether the rule keeps a share of the tokens; if not, it keeps scores on one side of a threshold."""
        return self.keep in ("top", "bottom")

    @property
    def is_decided_before_training(self) -> bool:
        """Whether the tokens are selected once, among the complete train split, before the first step."""
        return self.scope == "dataset" and not self.takes_all

    @property
    def expected_share(self) -> float:
        """The expected share of response tokens that are selected.

        The mean of a scheduled quantile; one half for a threshold, whose share only training shows.
        """
        if self.takes_all:
            return 1.0
        if isinstance(self.quantile, Schedule):
            return (self.quantile.start + self.quantile.end) / 2
        return 0.5 if self.quantile is None else self.quantile
