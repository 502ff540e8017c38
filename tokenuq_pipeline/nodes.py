"""The nodes of the asset graph: what each is called, and where each of its outputs lies.

A node is a stage with the study, ablation, model or dataset that it belongs to. Knows the
layout of the store; neither what depends on what (`assets/`) nor how a stage is run.
"""

from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from tokenuq_ml.tables import TABLES, table_dir

OUTPUTS = {
    "models": ("weights",),
    "datasets": ("examples",),
    "tokenized_dataset": ("tokenized_dataset",),
    "baseline_teacher": ("adapter", "training_log", "plots"),
    "token_losses": ("token_losses",),
    "teacher_hidden": ("teacher_hidden",),
    "token_uncertainty": ("token_uncertainty",),
    "reference_evaluation": ("evaluations_base", "evaluations_teacher", "generations_base", "generations_teacher"),
    "uncertainty_analysis": ("uncertainty_analysis", "plots"),
    "student": ("adapter", "snapshots", "training_log", "selections", "plots"),
    "curriculum": ("curriculum", "curriculum_uncertainty", "plots"),
    "evaluation": ("evaluations", "generations"),
    "ablation_report": ("report",),
}


@dataclass(frozen=True)
class Node:
    """One asset. `name` is the model's or the dataset's; `study` and `ablation` are set where they apply."""

    stage: str
    study: str | None = None
    ablation: str | None = None
    name: str | None = None

    @property
    def key(self) -> dg.AssetKey:
        parts = (self.stage, self.name) if self.name else (self.study, self.ablation, self.stage)
        return dg.AssetKey([part for part in parts if part])

    @property
    def label(self) -> str:
        """The key as people write it, e.g. `quickstart/mle/student`."""
        return self.key.to_user_string()

    @property
    def group(self) -> str:
        if self.name:
            return self.stage
        return f"{self.study}__{self.ablation}" if self.ablation else self.study

    @property
    def table(self) -> str | None:
        """The table that the asset is, where it is one."""
        first = OUTPUTS[self.stage][0].split("_base")[0]
        return first if first in TABLES else None

    def path(self, home: Path, output: str) -> Path:
        """The published folder of an output."""
        table = output
        ablation = self.ablation
        for reference in ("base", "teacher"):
            if output.endswith(f"_{reference}"):
                table, ablation = output.removesuffix(f"_{reference}"), reference
        if self.stage == "baseline_teacher" and output in ("training_log", "plots"):
            ablation = "teacher"
        partition = [f"study={self.study}"] + ([f"ablation={ablation}"] if ablation else [])
        if table in TABLES:
            parts = {"study": self.study, "ablation": ablation, "dataset": self.name}
            return table_dir(home, table, **{key: value for key, value in parts.items() if value})
        if output == "weights":
            return home / "models" / self.name
        if output == "plots":
            return home.joinpath("plots", *partition, f"stage={self.stage}")
        if output in ("adapter", "snapshots"):
            return home.joinpath(self.stage, *partition, output)
        return home.joinpath(self.stage, *partition)


def model_node(name: str) -> Node:
    return Node("models", name=name)


def dataset_node(name: str) -> Node:
    return Node("datasets", name=name)
