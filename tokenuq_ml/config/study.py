"""A study: model, dataset, training budget, measurements and ablations; the entries of `studies.yaml`.

`stages/versions.py` lists the fields that each stage depends on.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config.base import RESERVED_STUDIES, TEACHER_ROW, Spec, check_name, one_of
from tokenuq_ml.config.base_keys import BASE_KEYS, NARROW_ATTENTION, Attention, Quantization
from tokenuq_ml.config.estimators import ENSEMBLE, ESTIMATORS, OWN_RATE
from tokenuq_ml.config.evaluation import EvaluationSpec
from tokenuq_ml.config.language import GridSpec
from tokenuq_ml.config.mask_levels import MASK_LEVELS
from tokenuq_ml.config.resources import Processes, Sharding, StageName, StageResources
from tokenuq_ml.config.trackers import ReportTo
from tokenuq_ml.config.train import TrainChange, TrainSpec, TrainSweep


def _check_rate(p: float) -> float:
    """Raise an error for a rate that rounds to dropping no feature or all features."""
    if p and not 0 < round(p * MASK_LEVELS) < MASK_LEVELS:
        raise ValueError(f"{p:g} drops nothing or everything: use 0.0001 to 0.9999")
    return p


class UncertaintySpec(Spec):
    """Monte-Carlo dropout, which measures BALD, and further estimators of it."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"estimators", "members"})

    samples: Annotated[int, Field(gt=1, description="K, forward passes with dropout")] = 10
    dropout: Annotated[
        float,
        Field(gt=0, lt=1, description="rate at which input features of the adapter are dropped"),
        AfterValidator(_check_rate),
    ] = 0.1
    attention_dropout: Annotated[
        float, Field(ge=0, lt=1, description="dropout of attention probabilities"), AfterValidator(_check_rate)
    ] = 0.0
    mask: Literal["sequence", "position"] = Field(
        default="sequence",
        description="sequence: one mask for all positions (a sample of the weights); position: one mask per position",
    )
    seed: int = Field(default=0, description="of the masks")
    estimators: tuple[Annotated[str, one_of((OWN_RATE, *ESTIMATORS), "estimator")], ...] = Field(
        default=(), description="estimators of BALD that are measured too, each a column of `uncertainty_estimates`"
    )
    members: Annotated[
        int, Field(ge=2, description="teachers of `adapter_ensemble`: the study's own, and others with further seeds")
    ] = 5

    @property
    def measured(self) -> tuple[str, ...]:
        """The estimators that are columns of `uncertainty_estimates`, in the order of that table."""
        return tuple(name for name in ESTIMATORS if name in self.estimators)

    def dropout_fields(self) -> dict[str, Any]:
        """Return the fields that Monte-Carlo dropout at the study's own rate depends on."""
        return {key: value for key, value in self.fields().items() if key not in self.ADDED_LATER}

    def estimator_fields(self) -> dict[str, Any]:
        """Return the fields that `uncertainty_estimates` depends on: each estimator has a rate of its own."""
        own = {key: value for key, value in self.dropout_fields().items() if key != "dropout"}
        members = {"members": self.members} if ENSEMBLE in self.estimators else {}
        return {**own, "estimators": list(self.measured), **members}

    @model_validator(mode="after")
    def _check_estimators(self) -> Self:
        if len(set(self.estimators)) < len(self.estimators):
            raise ValueError("'estimators' names an estimator twice; remove one")
        if "members" in self.model_fields_set and ENSEMBLE not in self.estimators:
            raise ValueError(
                f"'members' is the size of {ENSEMBLE!r}, which 'estimators' does not name; add it, or remove 'members'"
            )
        return self


class CurriculumSpec(Spec):
    """What is measured during training, on a fixed sample of validation examples."""

    examples: Annotated[int, Field(gt=0, description="validation examples whose uncertainty is measured")] = 8
    samples: Annotated[int, Field(gt=1, description="K, forward passes with dropout")] = 5
    fractions: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.0, 0.25, 0.5, 1.0), description="shares of training at which it is measured"
    )


Precision = Literal["auto", "float32", "bfloat16"]


class PrecisionSpec(Spec):
    """The precision of computations; `auto` is bfloat16 if the processor or GPU supports it, else float32.

    A single value sets both keys. BALD is always computed in float32: it is a difference between passes, and the
    rounding of bfloat16 is larger than that difference.
    """

    training: Precision = Field(
        default="auto", description="of teacher, students, and the teacher's states that students read"
    )
    tables: Precision = Field(default="auto", description="of the tokens' losses and entropies, and of evaluations")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"training": value, "tables": value} if isinstance(value, str) else value


class StudySpec(Spec):
    """One model, one dataset and one training budget, with the ablations to compare."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset(
        {"truncation", "max_truncated_share", "template_drops", "special_tokens_in_text", "attention", "quantization"}
        | {"resources", "processes", "sharding", "seeds", "sweep", "teacher_sweep", "grid", "report_to"}
    )

    name: Annotated[str, AfterValidator(check_name)] = Field(description="the entry's key")
    model: str = Field(description="an entry of models.yaml")
    dataset: str = Field(description="an entry of datasets.yaml, to train on and for the test in distribution")
    ood: tuple[str, ...] = Field(default=(), description="entries of datasets.yaml, for the test out of distribution")
    max_length: Annotated[int, Field(gt=1, description="tokens per example; longer ones are cut")] = 1024
    truncation: Literal["right", "reject"] = Field(
        default="right", description="right: cut longer examples; reject: leave out those that lose response tokens"
    )
    max_truncated_share: Annotated[
        float, Field(ge=0, le=1, description="share of the dataset's examples that may lose response tokens")
    ] = 0.05
    template_drops: Literal["refuse", "reject", "allow"] = Field(
        default="refuse",
        description="examples that the chat template renders incompletely: refuse the dataset, leave them out, or "
        "train what is rendered",
    )
    special_tokens_in_text: Literal["encode", "keep"] = Field(
        default="encode", description="special tokens in the text of turns: encode as text, or keep as special tokens"
    )
    precision: PrecisionSpec = Field(default=PrecisionSpec(), description="of computations")
    attention: Attention = Field(
        default="auto", description="how attention is computed, by transformers; auto: as it chooses for the model"
    )
    quantization: Quantization | None = Field(
        default=None,
        description="of the base model's linear layers, by bitsandbytes; adapters are trained on top (QLoRA)",
    )
    train: TrainSpec = Field(default=TrainSpec(), description="the training budget")
    seeds: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="seeds of each ablation, from 0, in place of those that ablations.yaml lists"
    )
    sweep: TrainSweep | None = Field(
        default=None, description="settings at which each ablation is trained; the report takes the best on validation"
    )
    teacher_sweep: TrainSweep | None = Field(
        default=None, description="settings at which teachers are trained; the best on validation is the study's"
    )
    grid: GridSpec | None = Field(
        default=None, description="knobs of the dataset's language: the entry stands for one study per combination"
    )
    teacher_seed: int = Field(default=1000, description="of the teacher's training")
    teacher_states: Literal["cached", "online"] = Field(
        default="cached",
        description="cached: the teacher's states are stored once, if they fit; online: students run the teacher",
    )
    teacher_cache_gigabytes: Annotated[
        float, Field(gt=0, description="size limit of the teacher's states; beyond it students run the teacher")
    ] = 50.0
    uncertainty: UncertaintySpec = Field(default=UncertaintySpec(), description="how BALD is measured")
    curriculum: CurriculumSpec = Field(default=CurriculumSpec(), description="what is measured during training")
    evaluation: EvaluationSpec = Field(default=EvaluationSpec(), description="what is measured of every model")
    ablations: tuple[str, ...] = Field(description="entries of ablations.yaml")
    processes: Processes = Field(
        default=1, description="processes of a stage that trains or measures; auto: one per GPU; no part of any version"
    )
    sharding: Sharding = Field(
        default="none",
        description="fsdp: the processes of a stage share the base model's weights; no part of any version",
    )
    resources: dict[StageName, StageResources] = Field(
        default={}, description="what stages reserve on a cluster, by stage; no part of any version"
    )
    report_to: ReportTo = Field(
        default=(),
        description="trackers that trainings and evaluations report to: tensorboard, mlflow, wandb, trackio; no part "
        "of any version",
    )
    enabled: bool = Field(
        default=True, description="whether schedule, sensors and automation run it; it can always be started by hand"
    )

    def base_fields(self) -> dict[str, Any]:
        """Return the fields of everything that loads the base model: which one, and how if not as by default."""
        given = self.model_dump(mode="json", include=set(BASE_KEYS))
        return {"model": self.model, **{key: given[key] for key in BASE_KEYS if key in given}}

    @property
    def teacher_candidates(self) -> dict[str, TrainChange]:
        """Row of each teacher that is tried -> its setting; empty if the teacher is trained once."""
        settings = self.teacher_sweep.settings if self.teacher_sweep else []
        return {f"{TEACHER_ROW}_{setting.label}": setting for setting in settings}

    @property
    def ensemble_teachers(self) -> dict[str, int]:
        """Row of each further teacher of the adapter ensemble -> its seed; the study's own teacher is the first."""
        count = self.uncertainty.members if ENSEMBLE in self.uncertainty.estimators else 1
        seeds = range(self.teacher_seed + 1, self.teacher_seed + count)
        return {f"{TEACHER_ROW}_s{seed}": seed for seed in seeds}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if self.name in RESERVED_STUDIES:
            raise ValueError(f"a study cannot be named {self.name!r}: the asset graph uses that name")
        if self.dataset in self.ood:
            raise ValueError(
                f"'ood' names {self.dataset!r}, which is the study's training dataset; remove it from 'ood'"
            )
        for key in ("ood", "ablations"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key!r} names an entry twice; remove one")
        if not self.ablations:
            raise ValueError("'ablations' is empty: name at least one")
        if self.sharding != "none" and self.processes == 1:
            raise ValueError(
                f"'sharding' is {self.sharding!r}, which shares the model between processes, and 'processes' is 1; set "
                "'processes' to their number or to auto"
            )
        self._check_trained_weights()
        self._check_engines()
        if self.attention in NARROW_ATTENTION and "float32" in (self.precision.training, self.precision.tables):
            raise ValueError(
                f"'attention' {self.attention} computes in bfloat16, and 'precision' is float32; set 'attention' to "
                "sdpa, or 'precision' to auto or bfloat16"
            )
        if self.processes != "auto" and self.train.batch_size % self.processes:
            raise ValueError(
                f"'processes' is {self.processes}, which does not divide train.batch_size {self.train.batch_size}: "
                "the examples of an optimiser step are shared equally"
            )
        return self

    def _check_engines(self) -> None:
        """Check that lm-eval and vLLM can answer for the study's models."""
        if self.evaluation.lm_eval is not None and self.sharding != "none":
            raise ValueError(
                f"'evaluation.lm_eval' runs each task in one process, and 'sharding' {self.sharding} shares the model "
                "between processes; remove one of the two"
            )
        for key in self.evaluation.by_vllm:
            others = {
                "quantization": self.quantization,
                "train.adapter": None if self.train.adapter == "lora" else self.train.adapter,
                "sharding": None if self.sharding == "none" else self.sharding,
                "processes": None if self.processes == 1 else self.processes,
            }
            for name, value in others.items():
                if value is not None:
                    raise ValueError(
                        f"'evaluation.{key}.engine' is vllm, which answers in one process, for models in 16 or 32 bits "
                        f"and their LoRA adapters, and {name!r} is {value!r}; remove one of the two"
                    )

    def _check_trained_weights(self) -> None:
        """Check that what is trained goes with how the base model is loaded."""
        if self.train.adapter == "none":
            if self.quantization is not None:
                raise ValueError(
                    f"'train.adapter' is none, which trains the base model's own weights, and 'quantization' "
                    f"{self.quantization} freezes them as integers; set 'train.adapter' to lora or dora, or remove "
                    "'quantization'"
                )
            if self.sharding != "none":
                raise ValueError(
                    f"'train.adapter' is none, and 'sharding' {self.sharding} shares weights that are frozen; set "
                    "'train.adapter' to lora or dora, or remove 'sharding'"
                )
            if self.attention in NARROW_ATTENTION:
                raise ValueError(
                    f"'attention' {self.attention} needs weights in 16 bits, and 'train.adapter' is none, which keeps "
                    "those that are trained in float32; set 'attention' to sdpa, which uses the same kernels on a GPU"
                )
        if self.quantization is not None and self.sharding != "none":
            raise ValueError(
                f"'sharding' {self.sharding} does not share quantised weights; remove 'sharding' (every process then "
                "holds the quantised model), or 'quantization'"
            )
