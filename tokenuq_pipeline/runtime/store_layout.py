"""Paths of tables and other outputs, relative to the store. `docs/store_layout.md` lists them all."""

from tokenuq_ml.config import REFERENCE_ROWS, RESERVED_STUDIES, TEACHER_ROW
from tokenuq_ml.tables.schemas import TABLES, partition_folder

EVALUATION_TABLES = (
    "evaluations",
    "evaluation_examples",
    "evaluation_tokens",
    "generations",
    "ifbench_answers",
    "gsm8k_answers",
    "alpaca_eval_verdicts",
    "pairwise_answers",
    "pairwise_verdicts",
    "lm_eval_samples",
)
STUDY_TABLES = {
    "tokenized_dataset": ("tokenized_dataset", "rejected_examples", "token_truth"),
    "token_losses": ("token_losses", "token_alternatives"),
    "token_uncertainty": ("token_uncertainty", "bald_reference"),
    "true_divergence": ("true_divergence", "true_divergence_over_training"),
    "teacher_change": ("teacher_change",),
    "uncertainty_estimates": ("uncertainty_estimates", "estimator_costs"),
    "uncertainty_analysis": ("uncertainty_analysis", "truth_ranking"),
    "teacher_sweep": ("teacher_candidates",),
}
"""Stage of a study -> its tables."""
ABLATION_TABLES = {
    "student": ("training_log", "selections"),
    "evaluation": (*EVALUATION_TABLES, "validation_losses"),
    "curriculum": ("curriculum", "curriculum_uncertainty"),
}
"""Stage of an ablation -> its tables."""
OTHER_TEACHERS = {"candidate_teacher": ("training_log", "validation_losses"), "ensemble_teacher": ("training_log",)}
"""Stage of a teacher with a row of its own -> its tables."""
TEACHER_SCORES = ("token_losses", "teacher_hidden", "reference_evaluation", "token_uncertainty")
"""Stages of a study that one child process makes."""
ANSWERS = "answers"
"""Folder of a stopped evaluation's answers and verdicts, among the checkpoints of its child process."""
COMPARISONS = "comparisons"
"""First part of the key of a comparison of studies, and the folder of their pages."""
TRACKING = "tracking"
"""Folder of the trackers that write files. It belongs to no asset: a run stays when its asset is made again."""
EXPORTS = "export"
"""First part of the key of an exported model, and the folder of such models."""
STUDY_PLOTS = {"token_losses", "token_uncertainty", "uncertainty_analysis", "reference_evaluation"}


def table_path(table: str, **partitions: str) -> str:
    """Return the folder of one partition of a table: `token_losses/study=quickstart`."""
    return partition_folder(table, **partitions)


def partition_path(output: str, **partitions: str) -> str:
    """Return the folder of an output that is not a table (adapter, plots, report): `plots/study=s/stage=x`."""
    return "/".join([output, *(f"{key}={value}" for key, value in partitions.items())])


def comparison_path(comparison: str) -> str:
    """Return the folder of the page that compares several studies."""
    return f"{COMPARISONS}/{comparison}"


def export_path(export: str) -> str:
    """Return the folder of an exported model."""
    return f"{EXPORTS}/{export}"


def candidate_adapter_path(study: str, row: str) -> str:
    """Return the path of the adapter of a candidate for the teacher."""
    return f"{partition_path('candidate_teacher', study=study, ablation=row)}/adapter"


def candidate_snapshots_path(study: str, row: str) -> str:
    """Return the folder of the candidate's adapters at shares of its training, in a study that knows the truth."""
    return f"{partition_path('candidate_teacher', study=study, ablation=row)}/snapshots"


def ensemble_adapter_path(study: str, row: str) -> str:
    """Return the path of the adapter of a further teacher of the adapter ensemble."""
    return f"{partition_path('ensemble_teacher', study=study, ablation=row)}/adapter"


def places_of(asset: str) -> dict[str, str]:
    """Return each output that an asset of this name can have, with its folder; nothing for an unknown stage.

    What a manifest says of its folders is compared with it, and deletion relies on it.
    """
    match asset.split("/"):
        case ["models", model]:
            return {"weights": f"models/{model}"}
        case ["datasets", dataset]:
            tables = [table for table, definition in TABLES.items() if definition.partitions == ("dataset",)]
            return {table: table_path(table, dataset=dataset) for table in tables}
        case ["comparisons", comparison]:
            return {"comparison": comparison_path(comparison)}
        case ["export", export]:
            return {"model": export_path(export)}
        case [study, stage] if study not in RESERVED_STUDIES:
            return _places_of_study(study, stage)
        case [study, ablation, stage] if study not in RESERVED_STUDIES and ablation not in REFERENCE_ROWS:
            return _places_of_ablation(study, ablation, stage)
    return {}


def worker_of(asset: str) -> str:
    """Return the first asset of the child process that makes `asset`: its checkpoints and locks have that name."""
    match asset.split("/"):
        case [study, ablation, stage] if stage in ABLATION_TABLES:
            return f"{study}/{ablation}/student"
        case [study, stage] if stage in TEACHER_SCORES:
            return f"{study}/{TEACHER_SCORES[0]}"
    return asset


def asset_of_checkpoint(worker: str, folder: str) -> str:
    """Return the asset that a folder among a child process's checkpoints is for.

    Args:
        worker: the first asset of the child process, which trains.
        folder: `<stage>-<key>`: finished parts of that stage; `answers`: of an evaluation; `<key>`: a training's.
    """
    parent, _, first = worker.rpartition("/")
    stage, dash, _ = folder.partition("-")
    if folder == ANSWERS:
        stage = "evaluation" if first == "student" else "reference_evaluation"
    elif not dash:
        stage = first
    return f"{parent}/{stage}"


def _places_of_study(study: str, stage: str) -> dict[str, str]:
    places = {table: table_path(table, study=study) for table in STUDY_TABLES.get(stage, ())}
    if stage in STUDY_PLOTS:
        places["plots"] = partition_path("plots", study=study, stage=stage)
    if stage == "baseline_teacher":
        places["adapter"] = f"{partition_path('baseline_teacher', study=study)}/adapter"
        places["snapshots"] = f"{partition_path('baseline_teacher', study=study)}/snapshots"
        places["training_log"] = table_path("training_log", study=study, ablation=TEACHER_ROW)
        places["plots"] = partition_path("plots", study=study, ablation=TEACHER_ROW, stage=stage)
    elif stage == "reference_evaluation":
        for row in REFERENCE_ROWS:
            places |= {f"{table}_{row}": table_path(table, study=study, ablation=row) for table in EVALUATION_TABLES}
    elif stage == "teacher_hidden":
        places["teacher_hidden"] = partition_path("teacher_hidden", study=study)
    elif stage == "ablation_report":
        places["report"] = partition_path("ablation_report", study=study)
    return places


def _places_of_ablation(study: str, ablation: str, stage: str) -> dict[str, str]:
    tables = OTHER_TEACHERS.get(stage) or ABLATION_TABLES.get(stage, ())
    places = {table: table_path(table, study=study, ablation=ablation) for table in tables}
    if places:
        places["plots"] = partition_path("plots", study=study, ablation=ablation, stage=stage)
    if stage == "candidate_teacher":
        places["adapter"] = candidate_adapter_path(study, ablation)
        places["snapshots"] = candidate_snapshots_path(study, ablation)
    if stage == "ensemble_teacher":
        places["adapter"] = ensemble_adapter_path(study, ablation)
    if stage == "student":
        folder = partition_path("student", study=study, ablation=ablation)
        places |= {"adapter": f"{folder}/adapter", "snapshots": f"{folder}/snapshots"}
        places["costs"] = partition_path("costs", study=study, ablation=ablation)
    return places
