"""How a model is trained from scratch: the key `pretraining` of a model with `source: pretrain`."""

from typing import Annotated

from pydantic import Field

from tokenuq_ml.config.base import Spec


class PretrainingSpec(Spec):
    """The training of a model from scratch, on the train split of a synthetic language."""

    steps: Annotated[int, Field(gt=0, description="optimiser steps")] = 1500
    batch_size: Annotated[int, Field(gt=0, description="documents per step")] = 64
    learning_rate: Annotated[float, Field(gt=0, description="peak of the schedule")] = 3e-3
    warmup_ratio: Annotated[
        float, Field(ge=0, le=1, description="share of the steps in which the learning rate rises")
    ] = 0.05
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's")] = 0.01
    seed: int = Field(default=0, description="of weights and data order")
