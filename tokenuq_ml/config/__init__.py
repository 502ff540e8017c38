"""Configuration: models, datasets, studies and ablations, validated and hashed.

`load.py` reads the YAML files; `stages/versions.py` decides which fields a stage depends on.
"""

from tokenuq_ml.config.ablation import AblationSpec, RankGrowth
from tokenuq_ml.config.base import (
    BASE_ROW,
    NAME,
    REFERENCE_ROWS,
    RESERVED_STUDIES,
    SPLITS,
    TEACHER_ROW,
    Spec,
    Split,
    check_name,
    spec_hash,
)
from tokenuq_ml.config.curated import CuratedDatasetSpec
from tokenuq_ml.config.evaluation import (
    AlpacaEvalSpec,
    EvaluationSpec,
    GenerationSpec,
    Gsm8kSpec,
    IfEvalSpec,
    JudgeSpec,
)
from tokenuq_ml.config.model import ModelSpec
from tokenuq_ml.config.objective import DistillSpec, ObjectiveSpec
from tokenuq_ml.config.select import Schedule, SelectSpec
from tokenuq_ml.config.sources import DatasetSpec
from tokenuq_ml.config.study import CurriculumSpec, PrecisionSpec, StudySpec, UncertaintySpec
from tokenuq_ml.config.train import LoraChange, LoraSpec, TrainChange, TrainSpec, TrainSweep

__all__ = [
    "BASE_ROW",
    "NAME",
    "REFERENCE_ROWS",
    "RESERVED_STUDIES",
    "SPLITS",
    "TEACHER_ROW",
    "AblationSpec",
    "AlpacaEvalSpec",
    "CuratedDatasetSpec",
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
    "Split",
    "StudySpec",
    "TrainChange",
    "TrainSpec",
    "TrainSweep",
    "UncertaintySpec",
    "check_name",
    "spec_hash",
]
