"""`<study>/<ablation>/...`, made by one child: the student, its evaluation, its curriculum."""

from tokenuq_ml.config import AblationSpec, ObjectiveSpec, Schedule, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import ablation_fields
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.baseline_teacher import teacher_adapter
from tokenuq_pipeline.assets.check_rules import selected_share
from tokenuq_pipeline.assets.evaluation_inputs import evaluation_sources, evaluation_tables
from tokenuq_pipeline.runtime.store_paths import partition_path, table_path


def ablation_assets(config: Config, study: StudySpec, ablation: AblationSpec) -> list[StageAsset]:
    """In the order that the child makes them."""
    name, arm = study.name, ablation.name
    common_inputs = {
        "model": f"models/{study.model}",
        "tokenized_dataset": table_path("tokenized_dataset", study=name),
    }
    common_deps = (("models", study.model), (name, "tokenized_dataset"))
    token_losses = {"token_losses": table_path("token_losses", study=name)}
    student_place = partition_path("student", study=name, ablation=arm)
    trained = {
        "adapter": f"{student_place}/adapter",
        "snapshots": f"{student_place}/snapshots",
        "selections": table_path("selections", study=name, ablation=arm),
    }

    def asset(stage: str, description: str, kinds: set[str], outputs: dict[str, str], **more) -> StageAsset:
        return StageAsset(
            stage=stage,
            path=(name, arm, stage),
            study=name,
            ablation=arm,
            fields=ablation_fields(config, study, ablation, stage),
            description=description,
            kinds=frozenset(kinds),
            needs_model=True,
            outputs=outputs,
            **more,
        )

    def plots(stage: str) -> str:
        return partition_path("plots", study=name, ablation=arm, stage=stage)

    student_inputs, student_deps = dict(common_inputs), common_deps
    if ablation.distils_from == "baseline":
        # Where the teacher is cached too: a cache of another teacher is refused.
        student_inputs["teacher"] = teacher_adapter(name)
        student_deps += ((name, "baseline_teacher"),)
        if study.teacher_states == "cached":
            student_inputs["teacher_hidden"] = partition_path("teacher_hidden", study=name)
            student_deps += ((name, "teacher_hidden"),)
    for table in ablation.tables_read:
        student_inputs[table] = table_path(table, study=name)
        student_deps += ((name, table),)
    student = asset(
        "student",
        f"{_sentence(ablation)} Holds the adapter, its training log, and which tokens were selected.",
        {"python", "torch"},
        {
            **trained,
            "training_log": table_path("training_log", study=name, ablation=arm),
            "plots": plots("student"),
            "costs": costs_path(name, arm),
        },
        inputs=student_inputs,
        deps=student_deps,
        table="training_log",
        checks=(selected_share(name, ablation),),
    )
    evaluated = evaluation_sources(study.evaluation)
    evaluation = asset(
        "evaluation",
        "One row a metric of the student, each with a bootstrap confidence interval.",
        {"python", "torch", "parquet"},
        {
            **{table: table_path(table, study=name, ablation=arm) for table in evaluation_tables(study.evaluation)},
            "plots": plots("evaluation"),
        },
        # Of token_losses the teacher's loss and entropy, which the student's are compared with.
        inputs=common_inputs | trained | token_losses | evaluated.inputs,
        deps=tuple(dict.fromkeys(((name, arm, "student"), (name, "token_losses"), *common_deps, *evaluated.deps))),
        table="evaluations",
    )
    curriculum = asset(
        "curriculum",
        "Which token categories were selected as training went on; loss and BALD of a fixed sample.",
        {"python", "torch", "parquet"},
        {
            **{
                table: table_path(table, study=name, ablation=arm) for table in ("curriculum", "curriculum_uncertainty")
            },
            "plots": plots("curriculum"),
        },
        inputs=common_inputs | trained | token_losses,
        deps=((name, arm, "student"), (name, "token_losses"), *common_deps),
        table="curriculum",
    )
    return [student, evaluation, curriculum]


def costs_path(study: str, ablation: str) -> str:
    """Where the record of what a student's training cost lies: timings, and so no part of its data version."""
    return partition_path("costs", study=study, ablation=ablation)


def _sentence(ablation: AblationSpec) -> str:
    """The ablation, read out."""
    select = ablation.select
    seed = f"; seed {ablation.seed}"
    growth = f"; LoRA rank from {ablation.rank_growth.start} up" if ablation.rank_growth else ""
    if select.takes_all:
        return f"Every response token: {_treatment(ablation.selected)}{growth}{seed}."
    units = "tokens" if select.unit == "token" else "examples"
    if select.by_quantile:
        which = f"The {select.keep} {_amount(select.quantile, '{:.0%}')} of {units}"
    else:
        which = f"The {units} {select.keep} {_amount(select.threshold, '{:g}')}"
    return (
        f"{which} by {select.by} ({ablation.selection_kind}, of the {select.scope}): {_treatment(ablation.selected)}; "
        f"the rest: {_treatment(ablation.rest)}{growth}{seed}."
    )


def _amount(value: float | Schedule | str, form: str) -> str:
    if isinstance(value, Schedule):
        return f"{form.format(value.start)} to {form.format(value.end)}"
    return value.replace("_", " ") if isinstance(value, str) else form.format(value)


def _treatment(objective: ObjectiveSpec) -> str:
    if objective.distill is not None:
        distil = objective.distill
        return f"{distil.divergence} to the {distil.teacher} teacher, temperature {distil.temperature:g}"
    return {"none": "not trained"}.get(objective.kind, f"trained by {objective.kind}")
