"""Checks of what entries say of synthetic languages: datasets of their worlds, models that are pre-trained on them."""

from collections.abc import Mapping
from pathlib import Path

from tokenuq_ml.config.model import ModelSpec
from tokenuq_ml.config.sources import DatasetSpec
from tokenuq_ml.config.study import StudySpec
from tokenuq_ml.errors import InputError

Origins = Mapping[tuple[str, str], Path]
"""(kind, name of an entry) -> the file that it is in."""


def language_of(dataset: DatasetSpec) -> str | None:
    """Return the entry that defines the language of a dataset; None if it is not of a synthetic language."""
    return dataset.name if dataset.defines_language else dataset.language


def check_languages(
    models: Mapping[str, ModelSpec],
    datasets: Mapping[str, DatasetSpec],
    studies: Mapping[str, StudySpec],
    origins: Origins,
) -> None:
    """Check that named languages exist, have documents for pre-training, and are those of their studies' models.

    Raises:
        InputError: one does not, or is not.
    """
    for kind, entries in (("datasets", datasets), ("models", models)):
        for name, entry in entries.items():
            if entry.language is not None:
                _require_language(f"{origins[kind, name]}: {name}.language", entry.language, datasets)
    for name, model in models.items():
        if model.language is not None and "train" not in (datasets[model.language].splits or ()):
            raise InputError(
                f"{origins['datasets', model.language]}: {model.language}.sizes: has no 'train' split, on which model "
                f"{name} is pre-trained"
            )
    for study in studies.values():
        for key, name in (("dataset", study.dataset), *(("ood", name) for name in study.ood)):
            _require_model(f"{origins['studies', study.name]}: {study.name}.{key}", study, models, datasets.get(name))


def _require_language(where: str, name: str, datasets: Mapping[str, DatasetSpec]) -> None:
    if name in datasets and datasets[name].defines_language:
        return
    defined = ", ".join(other for other, spec in datasets.items() if spec.defines_language) or "none"
    known = "defines no language" if name in datasets else "is not in datasets.yaml"
    raise InputError(f"{where}: {name!r} {known}; entries of format 'synthetic_language' without 'language': {defined}")


def _require_model(where: str, study: StudySpec, models: Mapping[str, ModelSpec], dataset: DatasetSpec | None) -> None:
    language = None if dataset is None else language_of(dataset)
    if language is None or study.model not in models or models[study.model].language == language:
        return
    assert dataset is not None
    fitting = ", ".join(name for name, model in models.items() if model.language == language) or "none yet"
    raise InputError(
        f"{where}: {dataset.name!r} is written in the language {language!r}, whose words are tokens of a model with "
        f"`source: pretrain` and `language: {language}` only, and the study's model is {study.model!r}; such models: "
        f"{fitting}"
    )
