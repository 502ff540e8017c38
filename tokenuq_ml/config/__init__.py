"""Every knob of a study, validated and hashed: models, datasets, studies, ablations.

Knows what a valid configuration is. Does not know where files lie, how YAML is found (`config.py`), which fields a
stage uses (`stages.py`), or what Dagster is.
"""

from tokenuq_ml.config.ablation import (
    AblationSpec,
    DistillSpec,
    LoraChange,
    ObjectiveSpec,
    RankGrowth,
    Schedule,
    SelectSpec,
)
from tokenuq_ml.config.base import NAME, RESERVED_ABLATIONS, RESERVED_STUDIES, SPLITS, Spec, check_name, spec_hash
from tokenuq_ml.config.evaluation import (
    AlpacaEvalSpec,
    EvaluationSpec,
    GenerationSpec,
    Gsm8kSpec,
    IfEvalSpec,
    JudgeSpec,
)
from tokenuq_ml.config.sources import DatasetSpec, ModelSpec
from tokenuq_ml.config.study import CurriculumSpec, LoraSpec, PrecisionSpec, StudySpec, TrainSpec, UncertaintySpec

__all__ = [
    "NAME",
    "RESERVED_ABLATIONS",
    "RESERVED_STUDIES",
    "SPLITS",
    "AblationSpec",
    "AlpacaEvalSpec",
    "CurriculumSpec",
    "DatasetSpec",
    "DistillSpec",
    "EvaluationSpec",
    "GenerationSpec",
    "Gsm8kSpec",
    "IfEvalSpec",
    "JudgeSpec",
    "LoraChange",
    "LoraSpec",
    "ModelSpec",
    "ObjectiveSpec",
    "PrecisionSpec",
    "RankGrowth",
    "Schedule",
    "SelectSpec",
    "Spec",
    "StudySpec",
    "TrainSpec",
    "UncertaintySpec",
    "check_name",
    "spec_hash",
]
