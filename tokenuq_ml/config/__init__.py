"""Configuration: models, datasets, studies and ablations, validated and hashed.

`load.py` reads the YAML files; `stages/versions.py` decides which fields a stage depends on. Names are imported on
first use, so that kernels and forward passes, which need `registry.py` alone, run where pydantic is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "BASE_ROW": "base",
    "NAME": "base",
    "REFERENCE_ROWS": "base",
    "RESERVED_STUDIES": "base",
    "SPLITS": "base",
    "TEACHER_ROW": "base",
    "AblationSpec": "ablation",
    "AlpacaEvalSpec": "evaluation",
    "CuratedDatasetSpec": "curated",
    "CurriculumSpec": "study",
    "DatasetSpec": "sources",
    "DistillSpec": "objective",
    "EvaluationSpec": "evaluation",
    "GenerationSpec": "evaluation",
    "Gsm8kSpec": "evaluation",
    "IfEvalSpec": "evaluation",
    "JudgeSpec": "evaluation",
    "LoraChange": "train",
    "LoraSpec": "train",
    "ModelSpec": "model",
    "ObjectiveSpec": "objective",
    "PrecisionSpec": "study",
    "RankGrowth": "ablation",
    "Schedule": "select",
    "SelectSpec": "select",
    "Spec": "base",
    "Split": "base",
    "StudySpec": "study",
    "TrainChange": "train",
    "TrainSpec": "train",
    "TrainSweep": "train",
    "UncertaintySpec": "study",
    "check_name": "base",
    "spec_hash": "base",
}
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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
