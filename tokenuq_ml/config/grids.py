"""Studies over a grid of knobs of a synthetic language: one entry of `studies.yaml` that stands for a study per cell.

A cell is the study of the entry on a dataset of its own, which differs from the entry's dataset in the knobs of the
cell only. All cells have one base model, because the knobs leave the words of the language as they are.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from tokenuq_ml.config.comparison import ComparisonSpec
from tokenuq_ml.config.language import LanguageChanges
from tokenuq_ml.config.sources import DatasetSpec
from tokenuq_ml.config.study import StudySpec
from tokenuq_ml.config.sweeps import suffix
from tokenuq_ml.errors import InputError

Origins = dict[tuple[str, str], Path]
"""(kind, name of an entry) -> the file that it is in."""
Grids = dict[str, dict[str, LanguageChanges]]
"""Entry with `grid` -> the study of each of its cells -> the knobs of the cell."""


def with_grids(
    studies: Mapping[str, StudySpec], datasets: Mapping[str, DatasetSpec], origins: Origins
) -> tuple[dict[str, StudySpec], dict[str, DatasetSpec], Grids]:
    """Return studies and datasets with those of every cell of a `grid`, and the cells of each entry that has one.

    Args:
        studies: the entries of studies.yaml.
        datasets: the entries of datasets.yaml.
        origins: where entries were found; those of cells are added.

    Raises:
        InputError: a dataset cannot be changed, or a cell has the name of another entry.
    """
    every_study, every_dataset, grids = dict[str, StudySpec](), dict(datasets), Grids()
    for name, study in studies.items():
        if study.grid is None:
            every_study[name] = study
            continue
        where = f"{origins['studies', name]}: {name}.grid"
        _require_world(where, study, datasets)
        grids[name] = {}
        for knobs in study.grid.cells:
            cell, dataset = _cell(where, study, datasets[study.dataset], knobs)
            for kind, made, taken in (("studies", cell, studies), ("datasets", dataset, datasets)):
                if made.name in taken:
                    raise InputError(f"{where}: makes {made.name!r}, which {kind}.yaml has too; rename that one")
                origins[kind, made.name] = origins["studies", name]
            every_study[cell.name], grids[name][cell.name] = cell, knobs
            if every_dataset.setdefault(dataset.name, dataset) != dataset:
                raise InputError(f"{where}: makes {dataset.name!r}, which another grid makes too; rename its dataset")
    return every_study, every_dataset, grids


def check_cells(comparisons: Mapping[str, ComparisonSpec], grids: Grids) -> None:
    """Check that the studies of a comparison that reads knobs are cells of a grid of both, each with knobs of its own.

    Raises:
        InputError: one is not.
    """
    knobs = {cell: (one.noise, one.zipf) for cells in grids.values() for cell, one in cells.items()}
    for name, comparison in comparisons.items():
        if not comparison.NEEDS_KNOBS:
            continue
        where = f"comparisons.yaml: {name}.studies"
        for study in comparison.studies:
            if None in knobs.get(study, (None,)):
                fitting = [grid for grid, cells in grids.items() if None not in knobs[next(iter(cells))]]
                raise InputError(
                    f"{where}: {study} is no cell of a grid of noise and zipf; name an entry with such a `grid`: "
                    f"{', '.join(fitting) or 'none yet'}"
                )
        if len({knobs[study] for study in comparison.studies}) < len(comparison.studies):
            raise InputError(f"{where}: two studies have the same noise and zipf; name one grid only")


def _require_world(where: str, study: StudySpec, datasets: Mapping[str, DatasetSpec]) -> None:
    """Raise an InputError if the study's dataset is none whose knobs can be changed."""
    dataset = datasets.get(study.dataset)
    assert study.grid is not None
    if dataset is None or dataset.world != "post":
        fitting = ", ".join(name for name, spec in datasets.items() if spec.world == "post") or "none yet"
        raise InputError(
            f"{where}: changes knobs of a synthetic language, and the study's dataset is {study.dataset!r}; name one "
            f"of world 'post': {fitting}"
        )
    if dataset.changes is not None and (twice := study.grid.values.keys() & dataset.changes.fields()):
        raise InputError(
            f"{where}: lists {min(twice)!r}, which 'changes' of {study.dataset} sets in datasets.yaml; remove one of "
            "them"
        )


def _cell(where: str, study: StudySpec, dataset: DatasetSpec, knobs: LanguageChanges) -> tuple[StudySpec, DatasetSpec]:
    """Return the study of a cell, and its dataset."""
    ending = "".join(suffix("", key, value) for key, value in knobs.fields().items())
    given = dataset.changes.fields() if dataset.changes is not None else {}
    changes = LanguageChanges(**given, **knobs.fields())
    made = dataset.model_copy(update={"name": f"{dataset.name}{ending}", "changes": changes})
    try:
        # Validated, because the names of its datasets may be taken now.
        one = {**dict(study), "name": f"{study.name}{ending}", "dataset": made.name, "grid": None}
        return StudySpec.model_validate(one), made
    except ValidationError as error:
        raise InputError(f"{where}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
