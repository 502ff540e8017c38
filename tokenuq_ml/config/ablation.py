"""An ablation: which tokens are selected, how they are trained, and how the other tokens are trained.

The entries of `ablations.yaml`. The names that an entry may use are in `registry.py`; the functions behind them are in
`training/selection.py` and `training/objectives.py`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config import registry, user_code
from tokenuq_ml.config.base import REFERENCE_ROWS, Spec, check_name, function_or, one_of
from tokenuq_ml.config.study import LoraSpec


class Schedule(Spec):
    """A number that changes linearly over the optimiser steps."""

    start: float = Field(description="value at the first step")
    end: float = Field(description="value at the last step")

    def at(self, progress: float) -> float:
        """Return the value at `progress`, the share of training done: 0 at the first step, 1 at the last."""
        return self.start + (self.end - self.start) * progress


class SelectSpec(Spec):
    """The rule that decides which response tokens get the objective `selected`."""

    by: Annotated[str, function_or(registry.SELECTORS, "selector")]
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
            if self.by in ("random", "excess_loss"):
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


class LoraChange(Spec):
    """How an ablation's adapter differs from its study's; without `alpha`, alpha keeps its ratio to the rank."""

    rank: Annotated[int, Field(gt=0)] | None = None
    alpha: Annotated[int, Field(gt=0)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None

    def of(self, lora: LoraSpec) -> LoraSpec:
        """Return the study's adapter with these changes."""
        rank = self.rank or lora.rank
        alpha = self.alpha or max(1, round(lora.alpha * rank / lora.rank))
        return LoraSpec(rank=rank, alpha=alpha, dropout=lora.dropout if self.dropout is None else self.dropout)


class RankGrowth(Spec):
    """Growth of the adapter's active rank as the mean loss of the selected tokens falls; see `rank_growth.py`."""

    start: Annotated[int, Field(gt=0, description="active rank at the first step; the adapter's rank is the last")] = 8
    fall: Annotated[float, Field(gt=0, lt=1, description="share of the first loss at which the rank is full")] = 0.5


class AblationSpec(Spec):
    """Which tokens are selected, how they are trained, and how the other tokens are trained.

    Short forms are accepted: a selector's name for `select`, an objective's name for `selected` and `rest`, and
    `{"distill": {...}}` for an objective that distils.

    Args:
        name: of lower-case letters, digits and single underscores.
        select: the rule that selects tokens.
        selected: what is done with the selected tokens; default: cross-entropy (`mle`).
        rest: what is done with the other tokens; default: nothing (`none`).
        seed: of adapter initialisation, order of batches and random selectors.
        lora: changes to the study's adapter.
        rank_growth: growth of the adapter's active rank; default: none.
        columns: columns of the token tables that your own functions (`module:function`) read.

    Raises:
        pydantic.ValidationError: a key is unknown, a value is not allowed, or values contradict each other.

    Example:
        >>> from tokenuq_ml import AblationSpec
        >>> ablation = AblationSpec(
        ...     name="paper_top25",
        ...     select={"by": "loss", "quantile": 0.25},
        ...     rest={"distill": {"teacher": "baseline"}},
        ... )
        >>> ablation.selection_kind, ablation.distils_from
        ('dynamic', 'baseline')
    """

    name: Annotated[str, AfterValidator(check_name)]
    select: SelectSpec
    selected: ObjectiveSpec = ObjectiveSpec(kind="mle")
    rest: ObjectiveSpec = ObjectiveSpec(kind="none")
    seed: Annotated[int, Field(ge=0)] = 0
    lora: LoraChange = LoraChange()
    rank_growth: RankGrowth | None = None
    columns: tuple[Annotated[str, one_of(registry.COLUMNS, "column")], ...] = Field(
        default=(), description="columns of the token tables that the ablation's own functions read"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("select"), str):
            return {**value, "select": {"by": value["select"]}}
        return value

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.name in REFERENCE_ROWS:
            raise ValueError(f"an ablation cannot be named {self.name!r}: the report has a row of that name")
        if self.selected.distill and self.rest.distill:
            for key in ("teacher", "divergence", "temperature"):
                chosen, rest = getattr(self.selected.distill, key), getattr(self.rest.distill, key)
                if chosen != rest:
                    raise ValueError(
                        f"'selected' and 'rest' distil with different {key} ({chosen!r}, {rest!r}); give both the same"
                    )
        return self

    @property
    def family(self) -> str:
        """The name without its seed; seeds of one ablation are grouped by it."""
        return self.name.removesuffix(f"_s{self.seed}") if self.seed else self.name

    # What it selects.

    @property
    def selection_kind(self) -> Literal["all", "static", "dynamic"]:
        """How tokens are selected.

        `dynamic`: by the student's losses, which a user's own selector may read. `static`: by anything else.
        """
        if self.select.takes_all:
            return "all"
        score = registry.SELECTORS.get(self.select.by)
        of_student = self.select.scope == "batch" and (score is None or score.of_student)
        return "dynamic" if of_student else "static"

    # What it needs.

    @property
    def needs_student_losses(self) -> bool:
        """Whether the student's losses must be known before the gradient: to select tokens or to weigh them."""
        return self.selection_kind == "dynamic" or any(map(user_code.is_reference, self._objectives))

    @property
    def columns_read(self) -> tuple[str, ...]:
        """The columns of the token tables that selection and objectives read, by their names in `registry.COLUMNS`."""
        score = registry.SELECTORS.get(self.select.by)
        read = [*self.columns, *(score.columns if score else ())]
        if self.select.threshold == "teacher_mean" or self.select.is_decided_before_training:
            read.append("teacher_loss")
        return tuple(dict.fromkeys(read))

    @property
    def tables_read(self) -> tuple[str, ...]:
        """The token tables that hold `columns_read`."""
        return tuple(dict.fromkeys(registry.COLUMNS[name][0] for name in self.columns_read))

    @property
    def functions(self) -> tuple[str, ...]:
        """The user's own functions (`module:function`) that it names."""
        return tuple(
            name for name in dict.fromkeys((self.select.by, *self._objectives)) if user_code.is_reference(name)
        )

    # How it trains.

    @property
    def scales_loss(self) -> bool:
        """Whether some tokens' cross-entropy has a factor of the student's own logits (`dft`, `eaft`)."""
        return any(kind in registry.OBJECTIVES and registry.OBJECTIVES[kind].scales_loss for kind in self._objectives)

    @property
    def distillation(self) -> DistillSpec | None:
        """How tokens are distilled; None if no token is. If both parts are distilled, only their weights differ."""
        return self.selected.distill or self.rest.distill

    @property
    def distils_from(self) -> str | None:
        """The teacher, by its name in `registry.TEACHERS`; None if no token is distilled."""
        return self.distillation.teacher if self.distillation else None

    @property
    def can_use_mean_embeddings(self) -> bool:
        """Whether mean embeddings can replace the teacher's states, for a model without soft-capped logits."""
        return self.distillation is not None and self.distillation.is_linear_in_teacher and not self.scales_loss

    @property
    def _objectives(self) -> tuple[str, str]:
        return self.selected.kind, self.rest.kind
