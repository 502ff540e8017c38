"""A study: model, dataset, training budget, measurements and ablations; the entries of `studies.yaml`.

Which of these fields each stage uses is in `stages.py`.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config.base import RESERVED_STUDIES, Spec, check_name
from tokenuq_ml.config.evaluation import EvaluationSpec


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


MASK_LEVELS = 2**16
"""Masks of Monte-Carlo dropout compare sixteen random bits with a threshold."""


def _drops(p: float) -> float:
    """Refuse a rate at which no feature would ever be dropped, or each one."""
    if p and not 0 < round(p * MASK_LEVELS) < MASK_LEVELS:
        raise ValueError(f"{p:g} drops nothing or everything: use 0.0001 to 0.9999")
    return p


class UncertaintySpec(Spec):
    """Monte-Carlo dropout."""

    samples: Annotated[int, Field(gt=1, description="K, forward passes with dropout")] = 10
    dropout: Annotated[float, Field(gt=0, lt=1), AfterValidator(_drops)] = 0.1
    attention_dropout: Annotated[
        float, Field(ge=0, lt=1, description="of attention probabilities as well"), AfterValidator(_drops)
    ] = 0.0
    mask: Literal["sequence", "position"] = Field(
        "sequence", description="sequence: one mask for all positions (one weight sample); position: fresh each"
    )
    seed: int = 0


class CurriculumSpec(Spec):
    """What is followed through training on a fixed sample of validation examples."""

    examples: Annotated[int, Field(gt=0)] = 8
    samples: Annotated[int, Field(gt=1)] = 5
    fractions: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 1.0)


Precision = Literal["auto", "float32", "bfloat16"]


class PrecisionSpec(Spec):
    """What numbers are computed in; `auto` is bfloat16 where the processor or GPU has it, else float32.

    BALD is computed in float32 whatever is said here: it is a difference of passes, and bfloat16's rounding is larger.
    A single value stands for both.
    """

    training: Precision = Field("auto", description="teacher, students, and the teacher's states that students read")
    tables: Precision = Field("auto", description="losses and entropies of tokens, and evaluations")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value):
        return {"training": value, "tables": value} if isinstance(value, str) else value


class StudySpec(Spec):
    """Model x dataset x training budget x ablations."""

    name: Annotated[str, AfterValidator(check_name)]
    model: str
    dataset: str
    ood: tuple[str, ...] = ()
    max_length: Annotated[int, Field(gt=1, description="tokens an example; the rest is cut off")] = 1024
    precision: PrecisionSpec = PrecisionSpec()
    train: TrainSpec = TrainSpec()
    teacher_seed: int = 1000
    teacher_states: Literal["cached", "online"] = "cached"
    teacher_cache_gigabytes: Annotated[
        float, Field(gt=0, description="largest cache of the teacher's states; above it students run the teacher")
    ] = 50.0
    uncertainty: UncertaintySpec = UncertaintySpec()
    curriculum: CurriculumSpec = CurriculumSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    ablations: tuple[str, ...]
    enabled: bool = Field(True, description="whether schedule, sensors and automation rerun it; by hand it always runs")

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
