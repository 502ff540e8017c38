"""The training budget of a study, how an ablation changes it, and the settings that a study tries."""

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tokenuq_ml.config.base import Spec
from tokenuq_ml.config.sweeps import suffix


class LoraSpec(Spec):
    """The LoRA adapter of teacher and students."""

    rank: Annotated[int, Field(gt=0, description="of every adapted layer")] = 32
    alpha: Annotated[int, Field(gt=0, description="scale of the adapter, relative to the rank")] = 64
    dropout: Annotated[float, Field(ge=0, lt=1, description="of the adapter's input features, in training")] = 0.1


Adapter = Literal["lora", "dora", "none"]
"""LoRA (arXiv 2106.09685), DoRA (arXiv 2402.09353), or full fine-tuning."""
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]
"""AdamW in the implementations that `transformers.TrainingArguments.optim` names; the last three are bitsandbytes'."""


class TrainSpec(Spec):
    """The training budget, the same for the teacher and every student of a study."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset(
        {"adapter", "gradient_checkpointing", "optimizer", "torch_compile", "liger_kernel"}
    )

    epochs: Annotated[int, Field(gt=0, description="passes over the training split")] = 1
    batch_size: Annotated[int, Field(gt=0, description="examples per optimiser step")] = 8
    micro_batch_size: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="examples per forward pass; must divide batch_size; default: batch_size"
    )
    learning_rate: Annotated[float, Field(gt=0, description="peak of the schedule")] = 2e-4
    lr_schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="after warm-up")
    warmup_ratio: Annotated[
        float, Field(ge=0, le=1, description="share of the steps in which the learning rate rises")
    ] = 0.1
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's")] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, description="gradients of a larger norm are scaled down to it")] = 1.0
    save_steps: Annotated[
        int, Field(gt=0, description="optimiser steps between checkpoints, from which an interrupted training resumes")
    ] = 50
    batching: Literal["bucket", "pack"] = Field(
        default="bucket",
        description="bucket: padded batches of similar lengths; pack: one row without padding, if the model allows it",
    )
    adapter: Adapter = Field(
        default="lora", description="what is trained: a LoRA adapter, a DoRA adapter, or (none) the model's own weights"
    )
    lora: LoraSpec = Field(default=LoraSpec(), description="the adapter")
    gradient_checkpointing: bool = Field(
        default=False, description="keep each layer's input only, and recompute the layer in the backward pass"
    )
    optimizer: Optimizer = Field(
        default="adamw_torch",
        description="8bit: moments in 8 bits; paged: moments that move to the host if the GPU is full",
    )
    torch_compile: bool = Field(default=False, description="compile the layers with torch.compile")
    liger_kernel: bool = Field(
        default=False, description="norms, rotary positions and gates in one launch each, by Liger, on a GPU"
    )

    @property
    def adapter_settings(self) -> dict[str, str | float]:
        """What is trained, in words -> its settings."""
        if self.adapter == "none":
            return {"adapter": "none: all weights are trained"}
        name, lora = {"lora": "LoRA", "dora": "DoRA"}[self.adapter], self.lora
        return {f"{name} rank, alpha": f"{lora.rank}, {lora.alpha}", f"{name} dropout": lora.dropout}

    @model_validator(mode="after")
    def _check_adapter(self) -> Self:
        if self.adapter == "none" and self.lora != LoraSpec():
            raise ValueError("'lora' sets an adapter, and 'adapter' is none; remove 'lora', or set 'adapter' to lora")
        return self

    @model_validator(mode="after")
    def _check_micro_batch_size(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class LoraChange(Spec):
    """How an ablation's adapter differs from its study's; without `alpha`, alpha keeps its ratio to the rank."""

    rank: Annotated[int, Field(gt=0, description="instead of the study's")] | None = None
    alpha: Annotated[int, Field(gt=0, description="instead of the study's")] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1, description="instead of the study's")] | None = None

    def of(self, lora: LoraSpec) -> LoraSpec:
        """Return the study's adapter with these changes."""
        rank = self.rank or lora.rank
        alpha = self.alpha or max(1, round(lora.alpha * rank / lora.rank))
        return LoraSpec(rank=rank, alpha=alpha, dropout=lora.dropout if self.dropout is None else self.dropout)


class TrainChange(Spec):
    """How an ablation's training differs from its study's."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"learning_rate", "epochs", "weight_decay", "lora"})

    learning_rate: Annotated[float, Field(gt=0, description="instead of the study's")] | None = None
    epochs: Annotated[int, Field(gt=0, description="instead of the study's")] | None = None
    weight_decay: Annotated[float, Field(ge=0, description="instead of the study's")] | None = None
    lora: LoraChange | None = Field(default=None, description="changes to the study's adapter")

    @property
    def values(self) -> dict[str, float | int]:
        """Key -> value of what is set, without the level of `lora`: `{"learning_rate": 0.001, "rank": 8}`."""
        lora = self.lora.model_dump(exclude_none=True) if self.lora is not None else {}
        return {key: getattr(self, key) for key in BUDGET_KEYS if getattr(self, key) is not None} | lora

    @property
    def label(self) -> str:
        """What is set, as a name says it: `lr0p001_rank8`; empty if nothing is."""
        return "".join(self._suffixes).removeprefix("_")

    def removed_from(self, name: str) -> str:
        """Return the name without what sweeps of the keys that are set have added to its end."""
        left = list(self._suffixes)
        while found := next((one for one in left if name.endswith(one)), None):
            left.remove(found)
            name = name.removesuffix(found)
        return name

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return tuple(suffix("", key, value) for key, value in self.values.items())

    @property
    def text(self) -> str:
        """What is set, in words: `learning rate 0.001, rank 8`; `as the study` if nothing is."""
        return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in self.values.items()) or "as the study"

    def of(self, train: TrainSpec) -> TrainSpec:
        """Return the study's budget with these changes."""
        changes: dict[str, Any] = {key: value for key, value in self.values.items() if key in BUDGET_KEYS}
        if self.lora is not None:
            changes["lora"] = self.lora.of(train.lora)
        return train.model_copy(update=changes)


BUDGET_KEYS = ("learning_rate", "epochs", "weight_decay")
"""Keys of `TrainSpec` that `TrainChange` and `TrainSweep` may set, `lora` apart."""


class TrainSweep(Spec):
    """Settings of a training that are tried: every combination of the listed values."""

    learning_rate: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(default=None, description="values to try")
    epochs: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(default=None, description="values to try")
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(default=None, description="values to try")

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        for key, values in self.lists.items():
            if len(set(values)) < max(len(values), 1):
                raise ValueError(f"{key!r} must list values that differ from each other, at least one")
        if len(self.settings) < 2:
            raise ValueError("a sweep compares at least two settings; list several values of " + ", ".join(BUDGET_KEYS))
        return self

    @property
    def lists(self) -> Mapping[str, tuple[float, ...]]:
        """Key -> the values that are tried."""
        return {key: values for key in BUDGET_KEYS if (values := getattr(self, key)) is not None}

    @property
    def settings(self) -> list[TrainChange]:
        """The settings, in the order of the lists."""
        lists = self.lists
        combinations = itertools.product(*lists.values())
        return [TrainChange.model_validate(dict(zip(lists, values, strict=True))) for values in combinations]
