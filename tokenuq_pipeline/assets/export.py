"""`export/<name>`: a trained model of a study, in a format that other programs load, with its model card."""

from collections.abc import Iterator
from dataclasses import replace

from tokenuq_ml.config import BASE_ROW, TEACHER_ROW
from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.stages.versions import export_fields
from tokenuq_pipeline.assets import inputs
from tokenuq_pipeline.assets.asset import StageAsset, StageCheck
from tokenuq_pipeline.assets.check_outcome import Outcome, outcome
from tokenuq_pipeline.assets.inputs import AssetPath, Input
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import EXPORTS, export_path

STAGE = "export"
KINDS = {"merged": "a folder that transformers loads", "gguf": "a GGUF file"}


def export_asset(config: Config, spec: ExportSpec, needs_evaluations: bool = True) -> StageAsset:
    """Return the asset of an export.

    Args:
        config: all of it.
        spec: the export.
        needs_evaluations: False: the figures of the model card are of what was evaluated.
    """
    return StageAsset(
        stage=STAGE,
        path=(EXPORTS, spec.name),
        fields=export_fields(config, spec),
        description=f"{spec.ablation} of the study {spec.study} as {KINDS[spec.kind]}, with a model card.",
        kinds=frozenset({"python", "torch"}),
        outputs={"model": export_path(spec.name)},
        inputs=tuple(_inputs(config, spec, needs_evaluations)),
        checks=(
            StageCheck(
                "logits_match",
                "Check that the exported model, loaded again, gives the logits of base model plus adapter.",
                lambda store: logits_match(store, spec.name),
            ),
        ),
        needs_model=True,
    )


def trained_asset(spec: ExportSpec) -> AssetPath:
    """Return the asset that holds the weights of an export."""
    return (spec.study, spec.ablation) if spec.is_of_teacher else (spec.study, spec.ablation, "student")


def logits_match(store: Store, export: str) -> Outcome:
    """Check that the exported model gave the logits of the trained one; the stage itself compares them."""
    manifest = store.read_manifest(f"{EXPORTS}/{export}")
    found = manifest.checks.get("logits_match") if manifest else None
    if found is None:
        return outcome(False, "the stage did not compare them")
    return outcome(found.passed, found.description, **found.figures)


def _inputs(config: Config, spec: ExportSpec, needs_evaluations: bool) -> Iterator[Input]:
    study, asset = config.studies[spec.study], trained_asset(spec)
    yield replace(inputs.model(study.model), described=True)
    path = inputs.teacher_adapter_path(spec.study)
    if not spec.is_of_teacher:
        path = f"{inputs.student_path(spec.study, spec.ablation)}/adapter"
    yield Input("weights", path, asset, described=True)
    yield inputs.study_table(spec.study, "tokenized_dataset")
    own: AssetPath = ("reference_evaluation",) if spec.is_of_teacher else (spec.ablation, "evaluation")
    rows = {TEACHER_ROW if spec.is_of_teacher else spec.ablation: own, BASE_ROW: ("reference_evaluation",)}
    for row, stage in rows.items():
        for table in ("evaluations", "evaluation_examples"):
            yield replace(inputs.row_table(spec.study, table, row, stage), optional=not needs_evaluations)
