"""`<study>/ablation_report`: the table of all ablations, one HTML page."""

from pathlib import Path

import dagster as dg

from tokenuq_ml.config import Config
from tokenuq_ml.specs import StudySpec
from tokenuq_pipeline.assets.factory import Stage, child_process_assets
from tokenuq_pipeline.nodes import Node, dataset_node
from tokenuq_pipeline.store import Store

SHARED = ("tokenized_dataset", "token_losses", "token_uncertainty", "uncertainty_analysis")


def report_assets(config: Config, study: StudySpec) -> dg.AssetsDefinition:
    """The report of one study over all its ablations."""
    dataset = dataset_node(study.dataset)
    shared = [Node(stage, study.name) for stage in SHARED]
    teacher, reference = Node("baseline_teacher", study.name), Node("reference_evaluation", study.name)
    per_ablation = {
        name: {stage: Node(stage, study.name, name) for stage in ("student", "evaluation", "curriculum")}
        for name in study.ablations
    }
    stage = Stage(
        Node("ablation_report", study.name),
        deps=(dataset, *shared, teacher, reference, *(node for nodes in per_ablation.values() for node in nodes.values())),
        kinds=frozenset({"polars"}),
        description="The ablation table (base, teacher and every student, each metric with its interval), the in- against "
                    "out-of-distribution plane, curricula and a token heatmap: one self-contained HTML page.")

    def inputs(store: Store, asked: set[str]) -> dict[str, Path]:
        files = {node.stage: store.path(node, node.table) for node in shared}
        files |= {f"examples/{dataset.name}": store.path(dataset, "examples"),
                  "evaluations/base": store.path(reference, "evaluations_base"),
                  "evaluations/teacher": store.path(reference, "evaluations_teacher"),
                  "training_log/teacher": store.path(teacher, "training_log")}
        for name, nodes in per_ablation.items():
            files[f"evaluations/{name}"] = store.path(nodes["evaluation"], "evaluations")
            for output in ("training_log", "selections"):
                files[f"{output}/{name}"] = store.path(nodes["student"], output)
            for output in ("curriculum", "curriculum_uncertainty"):
                files[f"{output}/{name}"] = store.path(nodes["curriculum"], output)
        return files

    return child_process_assets(config, f"{study.name}__ablation_report", "report", [stage], inputs)
