"""The measured cost of training one student: tokens, steps, and seconds by phase.

Measured by `training/trainer.py` and shown by `reports/costs_table.py`.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.costs.flops import Selection, Step, Teacher
from tokenuq_ml.errors import InputError

FILE = "costs.json"
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Seconds(BaseModel):
    """Wall-clock seconds of a training by part. The parts are disjoint; `other` is the rest of `total`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    forward: Annotated[Amount, Field(description="the backbone's forward pass, up to the last hidden states")]
    head: Annotated[Amount, Field(description="head products, losses and the gradient of the hidden states")]
    backward: Annotated[Amount, Field(description="the backbone's backward pass")]
    teacher: Annotated[Amount, Field(description="reading the cache, or the online teacher's forward pass")]
    selection: Annotated[Amount, Field(description="loss passes that only select, and the selection itself")]
    other: Annotated[Amount, Field(description="optimiser, data, logging, checkpoints")]
    total: Amount


class CostRecord(BaseModel):
    """Sums over the steps of one training; a resumed one counts only its own steps.

    Of several processes, the counts are over all, and the seconds are those of rank 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: Annotated[int, Field(gt=0, description="optimiser steps")]
    sequences: Count
    tokens: Annotated[Count, Field(description="input tokens without padding")]
    padded_tokens: Annotated[Count, Field(description="input tokens with padding: what is computed")]
    response_tokens: Annotated[Count, Field(description="N: scored tokens")]
    mle_tokens: Annotated[Count, Field(description="response tokens trained by cross-entropy")]
    distilled_tokens: Annotated[Count, Field(description="response tokens trained by a divergence")]
    summed_tokens: Annotated[Count, Field(description="response tokens trained by both, and counted in both")] = 0
    selection: Selection
    selection_needs_loss: Annotated[bool, Field(description="the student's losses decide what is trained")]
    selection_needs_divergence: Annotated[bool, Field(description="and its divergence to the teacher")] = False
    selection_passes: Annotated[
        float,
        Field(
            ge=0,
            description="forward passes per micro-batch that only select: 0, or 1 if the quantile spans "
            "several micro-batches or ranks",
        ),
    ] = 0
    teacher: Teacher
    lora_rank: Annotated[int, Field(ge=0, description="as allocated; 0: no adapter")]
    trains_base: Annotated[bool, Field(description="the model's own weights are trained, not an adapter")] = False
    recomputes: Annotated[bool, Field(description="layers were computed again in the backward pass")] = False
    attended: Annotated[Amount, Field(description="sum over sequences of T^2 / 2, T as padded")]
    seconds: Seconds

    @classmethod
    def read(cls, path: str | Path) -> "CostRecord":
        """Read the record of a file.

        Raises:
            InputError: the file is missing or invalid.
        """
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; train the student again to measure its costs") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise InputError(f"{path}: {where}: {first['msg']}; train the student again") from None

    def write(self, path: str | Path) -> None:
        """Write the record atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write((self.model_dump_json(indent=2) + "\n").encode())

    def step(self) -> Step:
        """Return the mean optimiser step of the training."""
        return Step(
            padded_tokens=self.padded_tokens / self.steps,
            response_tokens=self.response_tokens / self.steps,
            attended=self.attended / self.steps,
            mle_share=self.mle_tokens / max(self.response_tokens, 1),
            distilled_share=self.distilled_tokens / max(self.response_tokens, 1),
            summed_share=self.summed_tokens / max(self.response_tokens, 1),
            selection_needs_loss=self.selection_needs_loss,
            selection_needs_divergence=self.selection_needs_divergence,
            selection_passes=self.selection_passes,
            teacher=self.teacher,
            lora_rank=self.lora_rank,
            trains_base=self.trains_base,
            recomputes=self.recomputes,
            # The table `selections` has the loss of every token.
            records_losses=True,
        )
