"""Reading of `comparisons.yaml`, a file that a configuration folder need not have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenuq_ml.config.ablation import AblationSpec
from tokenuq_ml.config.comparison import ComparisonSpec, spec_class_of
from tokenuq_ml.config.entries import checked_entry, read_entries
from tokenuq_ml.config.study import StudySpec
from tokenuq_ml.errors import InputError

FILE = "comparisons.yaml"


def read_comparisons(
    folders: Sequence[Path],
    named: Mapping[str, Sequence[str]],
    studies: Mapping[str, StudySpec],
    ablations: Mapping[str, AblationSpec],
) -> dict[str, ComparisonSpec]:
    """Return the checked entries of `comparisons.yaml` in all folders, by name, with their studies one by one.

    Args:
        folders: of the configuration.
        named: name in studies.yaml -> the studies that it stands for: itself, or the cells of a grid.
        studies: every study, by name.
        ablations: every ablation, by name.

    Raises:
        InputError: an entry is invalid, or names a study that does not exist or lacks what the comparison needs.
    """
    found: dict[str, ComparisonSpec] = {}
    for path, name, raw in read_entries(folders, FILE):
        spec = _with_single_studies(path, _parsed(path, name, raw), named)
        for study in spec.studies:
            if problem := spec.problem_with(studies[study], ablations):
                raise InputError(f"{path}: {name}.studies: {problem}")
        found[name] = spec
    return found


def _parsed(path: Path, name: str, raw: dict[str, Any]) -> ComparisonSpec:
    try:
        spec_class = spec_class_of(raw)
    except ValueError as error:
        raise InputError(f"{path}: {name}.{error}") from None
    return checked_entry(spec_class, path, name, raw)


def _with_single_studies(path: Path, spec: ComparisonSpec, named: Mapping[str, Sequence[str]]) -> ComparisonSpec:
    studies: list[str] = []
    for name in spec.studies:
        if name not in named:
            raise InputError(
                f"{path}: {spec.name}.studies: {name!r} is not in studies.yaml; allowed: {', '.join(named) or 'none'}"
            )
        studies += named[name]
    return spec.model_copy(update={"studies": tuple(dict.fromkeys(studies))})
