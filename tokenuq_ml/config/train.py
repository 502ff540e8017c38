"""The training budget of a study, and how an ablation changes it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tokenuq_ml.config.base import Spec


class LoraSpec(Spec):
    """The LoRA adapter of teacher and students."""

    rank: Annotated[int, Field(gt=0)] = 32
    alpha: Annotated[int, Field(gt=0)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class TrainSpec(Spec):
    """The training budget, the same for the teacher and every student of a study."""

    epochs: Annotated[int, Field(gt=0)] = 1
    batch_size: Annotated[int, Field(gt=0, description="examples per optimiser step")] = 8
    micro_batch_size: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="examples per forward pass; must divide batch_size; default: batch_size"
    )
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    save_steps: Annotated[int, Field(gt=0)] = 50
    batching: Literal["bucket", "pack"] = Field(
        default="bucket",
        description="bucket: padded batches of similar lengths; pack: one row without padding, if the model allows it",
    )
    lora: LoraSpec = LoraSpec()

    @model_validator(mode="after")
    def _check_micro_batch_size(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
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
