"""An ablation: which tokens are selected, how they are trained, and how the other tokens are trained.

The entries of `ablations.yaml`. The names that an entry may use are in `registry.py`; the functions behind them are in
`training/selectors.py` and `training/objectives.py`.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config import registry, user_code
from tokenuq_ml.config.base import REFERENCE_ROWS, Spec, check_name, one_of
from tokenuq_ml.config.objective import DistillSpec, ObjectiveSpec
from tokenuq_ml.config.select import SelectSpec
from tokenuq_ml.config.train import LoraChange, TrainChange


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
        train: changes to the study's training budget. Ablations that differ only in them are settings of one family.
        budget: `equal_steps`: as many optimiser steps as any other ablation of the study; `equal_tokens`: as many
            steps as train as many tokens as training every response token does.
        rank_growth: growth of the adapter's active rank; default: none.
        columns: columns of the token tables that your own functions (`module:function`) read.

    Raises:
        pydantic.ValidationError: a key is unknown, a value is not allowed, or values contradict each other.

    Examples:
        >>> from tokenuq_ml import AblationSpec
        >>> ablation = AblationSpec(
        ...     name="paper_top25",
        ...     select={"by": "loss", "quantile": 0.25},
        ...     rest={"distill": {"teacher": "baseline"}},
        ... )
        >>> ablation.selection_kind, ablation.distils_from
        ('dynamic', 'baseline')
    """

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"train", "budget"})

    name: Annotated[str, AfterValidator(check_name)]
    select: SelectSpec
    selected: ObjectiveSpec = ObjectiveSpec(kind="mle")
    rest: ObjectiveSpec = ObjectiveSpec(kind="none")
    seed: Annotated[int, Field(ge=0)] = 0
    lora: LoraChange = LoraChange()
    rank_growth: RankGrowth | None = None
    columns: tuple[Annotated[str, one_of({**registry.COLUMNS, **registry.STUDENT_COLUMNS}, "column")], ...] = Field(
        default=(), description="columns of the token tables or the student that the ablation's own functions read"
    )
    train: TrainChange = TrainChange()
    budget: Literal["equal_steps", "equal_tokens"] = "equal_steps"

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
            for key in ("teacher", "divergence", "temperature", "top_k"):
                chosen, rest = getattr(self.selected.distill, key), getattr(self.rest.distill, key)
                if chosen != rest:
                    raise ValueError(
                        f"'selected' and 'rest' distil with different {key} ({chosen!r}, {rest!r}); give both the same"
                    )
        return self

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.needs_student_divergence and self.distillation is None:
            raise ValueError(
                "it reads the divergence to a teacher and distils none: set 'selected' or 'rest' to 'distill', with "
                "weight 0 if the divergence is only to select"
            )
        return self

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        if self.train.lora is not None and self.lora != LoraChange():
            raise ValueError("'lora' and 'train.lora' both change the adapter; remove one of them")
        if self.budget == "equal_tokens":
            trained = {name: objective.trains for name, objective in (("selected", self.selected), ("rest", self.rest))}
            if trained != {"selected": True, "rest": False} or not self.select.is_partial:
                raise ValueError(
                    "budget 'equal_tokens' needs a selection that leaves tokens out, and rest 'none': otherwise every "
                    "step trains all tokens, or another number than the selection's; use budget 'equal_steps'"
                )
            if not self.select.by_quantile:
                raise ValueError(
                    "budget 'equal_tokens' needs the share of the tokens before training: keep 'top' or 'bottom' with "
                    "a quantile, not a threshold"
                )
        return self

    # Its names.

    @property
    def setting(self) -> str:
        """The name without its seed: one training configuration, whose seeds are grouped by it."""
        return self.name.removesuffix(f"_s{self.seed}") if self.seed else self.name

    @property
    def family(self) -> str:
        """The name without its seed and what `train` adds to it: settings of one objective are grouped by it."""
        return self.train.removed_from(self.setting)

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
        return (
            self.selection_kind == "dynamic"
            or bool(self.student_columns_read)
            or any(objective.spec is None or objective.spec.of_student for objective in self._objectives)
        )

    @property
    def needs_student_divergence(self) -> bool:
        """Whether selection or weights read the student's divergence to the teacher."""
        return registry.DIVERGENCE in self.student_columns_read

    @property
    def weighs_by_batch(self) -> bool:
        """Whether a token's weight depends on other tokens of the optimiser batch."""
        return any(objective.spec is None or objective.spec.of_batch for objective in self._objectives)

    def decides_together(self, is_masked: bool) -> bool:
        """Return whether a token's selection or weight depends on the complete optimiser batch.

        Args:
            is_masked: whether the selection was decided before training.
        """
        return bool(self.functions) or self.weighs_by_batch or not (self.select.takes_all or is_masked)

    @property
    def columns_read(self) -> tuple[str, ...]:
        """The columns of the token tables that selection and objectives read, by their names in `registry.COLUMNS`."""
        score = registry.SELECTORS.get(self.select.by)
        of_objectives = (name for objective in self._objectives if objective.spec for name in objective.spec.columns)
        own = (name for name in self.columns if name in registry.COLUMNS)
        read = [*own, *(score.columns if score else ()), *of_objectives]
        if self.select.threshold == "teacher_mean" or self.select.is_decided_before_training:
            read.append("teacher_loss")
        return tuple(dict.fromkeys(read))

    @property
    def tables_read(self) -> tuple[str, ...]:
        """The token tables that hold `columns_read`, and those that `student_columns_read` are computed with."""
        of_student = (table for name in self.student_columns_read for table in registry.STUDENT_COLUMNS[name].tables)
        return tuple(dict.fromkeys((*(registry.COLUMNS[name][0] for name in self.columns_read), *of_student)))

    @property
    def student_columns_read(self) -> tuple[str, ...]:
        """What selection reads of the student's own distributions, by names in `registry.STUDENT_COLUMNS`."""
        score = registry.SELECTORS.get(self.select.by)
        own = (name for name in self.columns if name in registry.STUDENT_COLUMNS)
        return tuple(dict.fromkeys((*own, *(score.student_columns if score else ()))))

    @property
    def needs_truth(self) -> bool:
        """Whether it reads the true distributions of tokens, which only a synthetic language has."""
        return not registry.TRUTH_TABLES.isdisjoint(self.tables_read)

    @property
    def functions(self) -> tuple[str, ...]:
        """The user's own functions (`module:function`) that it names."""
        return tuple(
            name
            for name in dict.fromkeys((self.select.by, self.selected.kind, self.rest.kind))
            if user_code.is_reference(name)
        )

    # How it trains.

    def steps(self, all_tokens: int) -> int:
        """Return the optimiser steps of its budget.

        Args:
            all_tokens: the steps of the study's epochs, as a training on every response token takes them.
        """
        if self.budget == "equal_steps":
            return all_tokens
        return max(1, round(all_tokens / self.select.expected_share))

    @property
    def scales_loss(self) -> bool:
        """Whether some tokens' cross-entropy has a factor of the student's own logits (`dft`, `focal`)."""
        return any(objective.spec is not None and objective.spec.scales_loss for objective in self._objectives)

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
    def _objectives(self) -> tuple[ObjectiveSpec, ObjectiveSpec]:
        return self.selected, self.rest
