"""What a stage needs: processes, and of a cluster processors, GPUs, memory. No part of any version."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tokenuq_ml.config.base import Spec

StageName = Literal[
    "tokenized_dataset",
    "candidate_teacher",
    "teacher_sweep",
    "baseline_teacher",
    "ensemble_teacher",
    "token_losses",
    "teacher_hidden",
    "token_uncertainty",
    "true_divergence",
    "teacher_change",
    "uncertainty_estimates",
    "reference_evaluation",
    "uncertainty_analysis",
    "student",
    "curriculum",
    "evaluation",
    "ablation_report",
]
"""The stages of a study, of which `resources` may name what they need."""

Processes = Annotated[int, Field(ge=1)] | Literal["auto"]
"""How many processes a stage has: a number, or `auto` for one per visible GPU, and one without GPUs."""

Sharding = Literal["none", "fsdp"]
"""Whether the processes of a stage share the base model's weights, or have one copy each."""

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>[kMGT]?)(?P<binary>i?)B", re.IGNORECASE)
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def bytes_of(value: Any) -> Any:
    """Return the bytes that a size such as `24GB` or `16GiB` names; a number stays as it is.

    Raises:
        ValueError: the text is no size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a size: write it like 24GB, 16GiB or 500MB")
    return round(float(match["number"]) * (1024 if match["binary"] else 1000) ** _UNITS[match["unit"].upper()])


class StageResources(Spec):
    """What one stage reserves on the cluster. None: what the launcher gives every stage."""

    num_cpus: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="processors; the stage's processes share as many threads"
    )
    num_gpus: Annotated[float, Field(ge=0, description="GPUs that a process of the stage reserves")] | None = None
    memory: Annotated[int, BeforeValidator(bytes_of), Field(gt=0, description="such as 24GB")] | None = None
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="resources that the cluster's nodes were started with, by name"
    )

    def share(self, processes: int) -> "StageResources":
        """Return what each of several processes of the stage reserves; a custom resource is not divided."""
        parts = {name: getattr(self, name) for name in ("num_cpus", "num_gpus", "memory")}
        given = {name: amount / processes for name, amount in parts.items() if amount is not None}
        if "memory" in given:
            given["memory"] = max(1, round(given["memory"]))
        return self.model_copy(update=given)


def largest(resources: Iterable[StageResources]) -> StageResources:
    """Return what one process needs that makes several assets: of each resource the most that one of them needs."""
    found: dict[str, Any] = {"custom": {}}
    for one in resources:
        for name in ("num_cpus", "num_gpus", "memory"):
            values = [value for value in (found.get(name), getattr(one, name)) if value is not None]
            found[name] = max(values, default=None)
        for name, amount in one.custom.items():
            found["custom"][name] = max(amount, found["custom"].get(name, 0.0))
    return StageResources(**found)
