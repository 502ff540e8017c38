"""The ablation as a sentence: which tokens, what is done with them, what with the rest; entries of `ablations.yaml`.

Names are checked against `registry.py`; what they mean is in `selection.py` and `objectives.py`.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config import registry, user_code
from tokenuq_ml.config.base import RESERVED_ABLATIONS, Spec, check_name, function_or, one_of
from tokenuq_ml.config.study import LoraSpec


class Schedule(Spec):
    """A number that moves in a straight line over optimiser steps."""

    start: float = Field(description="at the first step")
    end: float = Field(description="at the last step")

    def at(self, progress: float) -> float:
        """The number when the share `progress` of training is done, 0 at the first step and 1 at the last."""
        return self.start + (self.end - self.start) * progress


class SelectSpec(Spec):
    """Which response tokens the objective `selected` gets."""

    by: Annotated[str, function_or(registry.SELECTORS, "selector")]
    keep: Literal["top", "bottom", "above", "below"] = Field(
        "top", description="top, bottom: a quantile; above, below: the scores over, or at most, a threshold"
    )
    quantile: Annotated[float, Field(gt=0, le=1)] | Schedule | None = Field(
        None, description="k = ceil(quantile * N); default: 1"
    )
    threshold: float | Schedule | Literal["teacher_mean"] | None = Field(
        None, description="in the score's units; teacher_mean: the teacher's mean loss on the train split"
    )
    unit: Literal["token", "document"] = Field(
        "token", description="document: examples by their mean score, with all their tokens"
    )
    scope: Literal["batch", "dataset"] = Field(
        "batch", description="batch: the optimiser batch, by the student; dataset: all of train, by the teacher's table"
    )

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, value):
        if isinstance(value, dict) and value.get("keep", "top") in ("top", "bottom"):
            return {"quantile": 1.0, **value}
        return value

    @model_validator(mode="after")
    def _consistent(self):
        if self.keep in ("above", "below"):
            if self.threshold is None or self.quantile is not None:
                raise ValueError(f"keep {self.keep!r} needs 'threshold', and no 'quantile'")
        elif self.threshold is not None or self.quantile is None:
            raise ValueError(f"keep {self.keep!r} goes by 'quantile', not by 'threshold'")
        if isinstance(self.quantile, Schedule) and not all(
            0 < share <= 1 for share in (self.quantile.start, self.quantile.end)
        ):
            raise ValueError("a quantile's schedule must start and end above 0 and at most at 1")
        if self.scope == "dataset":
            if isinstance(self.quantile, Schedule) or isinstance(self.threshold, Schedule):
                raise ValueError("scope 'dataset' is decided once, before training: a schedule needs scope 'batch'")
            if self.by in ("random", "excess_loss"):
                raise ValueError(f"scope 'dataset' is decided once, before training, which {self.by!r} cannot be")
        return self


class DistillSpec(Spec):
    """Match a teacher's distribution."""

    teacher: Annotated[str, one_of(registry.TEACHERS, "teacher")] = "baseline"
    divergence: Annotated[str, one_of(registry.DIVERGENCES, "divergence")] = "forward_kl"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    weight: Annotated[float, Field(ge=0)] = 1.0


class ObjectiveSpec(Spec):
    """What is done with a set of tokens; `distill` is set only for that kind."""

    kind: Annotated[str, function_or(registry.OBJECTIVES, "objective")]
    distill: DistillSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value):
        if isinstance(value, str):
            return {"kind": value, "distill": {} if value == "distill" else None}
        if isinstance(value, dict) and set(value) == {"distill"}:
            return {"kind": "distill", "distill": value["distill"] or {}}
        return value


class LoraChange(Spec):
    """What an ablation has otherwise than its study's adapter; alpha follows the rank where it is not given."""

    rank: Annotated[int, Field(gt=0)] | None = None
    alpha: Annotated[int, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None

    def of(self, lora: LoraSpec) -> LoraSpec:
        """The study's adapter with these changes."""
        rank = self.rank or lora.rank
        alpha = self.alpha or max(1, round(lora.alpha * rank / lora.rank))
        return LoraSpec(rank=rank, alpha=alpha, dropout=lora.dropout if self.dropout is None else self.dropout)


class RankGrowth(Spec):
    """The adapter's active rank grows as the mean loss of the selected tokens falls; see `rank_growth.py`."""

    start: Annotated[int, Field(gt=0, description="active rank at first; the adapter's own rank is the last")] = 8
    fall: Annotated[float, Field(gt=0, lt=1, description="share of the first loss whose loss brings full rank")] = 0.5


class AblationSpec(Spec):
    """A sentence: select these tokens, train them so, and the rest so."""

    name: Annotated[str, AfterValidator(check_name)]
    select: SelectSpec
    selected: ObjectiveSpec = ObjectiveSpec(kind="mle")
    rest: ObjectiveSpec = ObjectiveSpec(kind="none")
    seed: Annotated[int, Field(ge=0)] = 0
    lora: LoraChange = LoraChange()
    rank_growth: RankGrowth | None = None
    columns: tuple[Annotated[str, one_of(registry.COLUMNS, "column")], ...] = Field(
        (), description="columns of the token tables that the ablation's own functions read"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value):
        if isinstance(value, dict) and isinstance(value.get("select"), str):
            return {**value, "select": {"by": value["select"]}}
        return value

    @model_validator(mode="after")
    def _named(self):
        if self.name in RESERVED_ABLATIONS:
            raise ValueError(f"an ablation cannot be named {self.name!r}: that row is the report's own")
        if self.selected.distill and self.rest.distill:
            for key in ("teacher", "divergence", "temperature"):
                chosen, rest = getattr(self.selected.distill, key), getattr(self.rest.distill, key)
                if chosen != rest:
                    raise ValueError(
                        f"'selected' and 'rest' distil with another {key} ({chosen!r}, {rest!r}); give both the same"
                    )
        return self

    @property
    def family(self) -> str:
        """The name without its seed: what seeds are grouped by."""
        return self.name.removesuffix(f"_s{self.seed}") if self.seed else self.name

    @property
    def needs_teacher(self) -> bool:
        """Whether any token is distilled."""
        return "distill" in (self.selected.kind, self.rest.kind)

    @property
    def selection_kind(self) -> Literal["all", "static", "dynamic"]:
        """dynamic: which tokens are selected depends on the student's losses; a user's own function may see them."""
        if self.select.by == "all":
            return "all"
        score = registry.SELECTORS.get(self.select.by)
        of_student = self.select.scope == "batch" and (score is None or score.of_student)
        return "dynamic" if of_student else "static"

    @property
    def is_static(self) -> bool:
        """Whether the selection is the same whatever the student has learnt."""
        return self.selection_kind != "dynamic"

    @property
    def columns_read(self) -> tuple[str, ...]:
        """What selection and objectives read of the token tables, by the names of `registry.COLUMNS`."""
        score = registry.SELECTORS.get(self.select.by)
        read = [*self.columns, *(score.columns if score else ())]
        if self.select.threshold == "teacher_mean" or (self.select.scope == "dataset" and self.select.by != "all"):
            read.append("teacher_loss")
        return tuple(dict.fromkeys(read))

    @property
    def tables_read(self) -> tuple[str, ...]:
        """The token tables that hold those columns."""
        return tuple(dict.fromkeys(registry.COLUMNS[name][0] for name in self.columns_read))

    @property
    def functions(self) -> tuple[str, ...]:
        """The user's own functions in it."""
        names = (self.select.by, self.selected.kind, self.rest.kind)
        return tuple(dict.fromkeys(name for name in names if user_code.is_reference(name)))
