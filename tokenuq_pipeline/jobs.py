"""One job a study: all of its assets with what they are made from, and their checks."""

import dagster as dg

from tokenuq_ml.config import Config
from tokenuq_ml.specs import StudySpec
from tokenuq_pipeline.nodes import Node


def study_selection(study: StudySpec) -> dg.AssetSelection:
    """The report and everything upstream of it: the whole study."""
    return dg.AssetSelection.assets(Node("ablation_report", study.name).key).upstream()


def study_jobs(config: Config) -> list:
    """A job for each study, named as the study."""
    return [
        dg.define_asset_job(
            study.name, selection=study_selection(study),
            description=f"Everything of the study {study.name}: model, data, teacher, tables, students, report.",
            tags={"study": study.name})
        for study in config.studies.values()
    ]
