"""The assets of one ablation of a study: the student, its curriculum, its evaluation."""

from pathlib import Path

import dagster as dg

from tokenuq_ml.config import Config
from tokenuq_ml.specs import AblationSpec, ObjectiveSpec, StudySpec
from tokenuq_pipeline.assets.factory import Stage, child_process_assets
from tokenuq_pipeline.nodes import Node, dataset_node, model_node
from tokenuq_pipeline.store import Store

MODEL_TABLE = frozenset({"torch", "polars", "parquet"})


def sentence(ablation: AblationSpec) -> str:
    """The ablation in words."""
    select = ablation.select
    chosen = "every response token" if select.by == "all" else (
        f"the {select.keep} {select.quantile:.0%} of response tokens by {select.by} (scope: {select.scope})")
    return f"{_done_with(ablation.selected)} on {chosen}" + (
        "" if select.by == "all" else f"; on the rest {_done_with(ablation.rest)}")


def _done_with(objective: ObjectiveSpec) -> str:
    if objective.distill is None:
        return {"mle": "MLE", "none": "nothing"}[objective.kind]
    spec = objective.distill
    return (f"distillation from the {spec.teacher} teacher ({spec.divergence}, temperature {spec.temperature:g}, "
            f"weight {spec.weight:g})")


def student_deps(study: StudySpec, ablation: AblationSpec) -> tuple[Node, ...]:
    """What the student is made from: only what its own sentence needs."""
    deps = [model_node(study.model), Node("tokenized_dataset", study.name)]
    distilled = [o.distill.teacher for o in (ablation.selected, ablation.rest) if o.distill is not None]
    if "baseline" in distilled:
        deps.append(Node("teacher_hidden" if study.teacher_states == "cached" else "baseline_teacher", study.name))
    if ablation.select.scope == "dataset":
        deps.append(Node("token_losses", study.name))
    return tuple(deps)


def ablation_assets(config: Config, study: StudySpec, ablation: AblationSpec) -> dg.AssetsDefinition:
    """Student, curriculum and evaluation, made by one child."""
    model, tokens = model_node(study.model), Node("tokenized_dataset", study.name)
    losses = Node("token_losses", study.name)
    prompts = [dataset_node(name) for name in config.evaluation_datasets(study)]
    student = Node("student", study.name, ablation.name)
    stages = [
        Stage(student, deps=student_deps(study, ablation), kinds=MODEL_TABLE,
              description=f"LoRA adapter trained from the base model with seed {ablation.seed}: {sentence(ablation)}. "
                          "Beside it the training log and, step by step, which tokens were selected."),
        Stage(Node("evaluation", study.name, ablation.name), deps=(student, model, tokens, *prompts), kinds=MODEL_TABLE,
              description="The student in and out of distribution: one row a metric, with a bootstrap interval over "
                          "examples."),
        Stage(Node("curriculum", study.name, ablation.name), deps=(student, model, tokens, losses), kinds=MODEL_TABLE,
              description="Which token categories were selected as training went on, and whether loss and BALD of a "
                          "fixed validation sample fall."),
    ]
    needed = {dep.stage: dep for dep in student_deps(study, ablation)}

    def inputs(store: Store, asked: set[str]) -> dict[str, Path]:
        files = {"model": store.path(model, "weights"), "tokenized_dataset": store.path(tokens, "tokenized_dataset")}
        if "curriculum" in asked or "token_losses" in needed:
            files["token_losses"] = store.path(losses, "token_losses")
        if "teacher_hidden" in needed:
            files["teacher_hidden"] = store.path(needed["teacher_hidden"], "teacher_hidden")
        if "baseline_teacher" in needed:
            files["teacher"] = store.path(needed["baseline_teacher"], "adapter")
        if "student" not in asked:
            files |= {output: store.path(student, output) for output in ("adapter", "snapshots", "selections")}
        return files | {f"examples/{source.name}": store.path(source, "examples") for source in prompts}

    return child_process_assets(config, f"{study.name}__{ablation.name}", "train_student", stages, inputs)
