"""Datasets that are made from another one by a reviewed file: entries with `from` and `curated_by`.

A file `curation/<name>.csv` or `.parquet` in a folder of the configuration is the curation `<name>`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tokenuq_ml.config.base import Spec, Split, check_name
from tokenuq_ml.config.sources import DatasetSpec
from tokenuq_ml.errors import InputError

KEYS = ("from", "curated_by")
FOLDER, SUFFIXES = "curation", (".csv", ".parquet")


class CuratedEntry(Spec):
    """An entry of `datasets.yaml` with `from` and `curated_by`, as it is written."""

    name: Annotated[str, AfterValidator(check_name)] = Field(description="the entry's key")
    made_from: str = Field(alias="from", description="the dataset that was reviewed")
    curated_by: Annotated[str, AfterValidator(check_name)] = Field(
        description="name of the reviewed file: <name>.csv or <name>.parquet in the folder curation/"
    )


class CuratedDatasetSpec(DatasetSpec):
    """A dataset that is another one as a reviewed file decided.

    Its file, `path`, is the reviewed one. Format and sizes are those of the other dataset, though the reviewed file may
    leave some of the rows out.
    """

    made_from: str
    curated_by: str
    original: DatasetSpec
    """The dataset that was reviewed, or that of its review if it is such a dataset itself: where rows are read."""

    @property
    def made_of(self) -> tuple[str, ...]:
        """The dataset that was reviewed."""
        return (self.made_from,)

    @property
    def splits(self) -> tuple[Split, ...] | None:
        """The splits that the other dataset has."""
        return self.original.splits

    def fields(self) -> dict[str, Any]:
        """Return what the stage reads: the other dataset's content and the reviewed file are inputs."""
        return {"name": self.name, "from": self.made_from, "curated_by": self.curated_by}


def with_curated(
    datasets: Mapping[str, DatasetSpec | CuratedEntry], origins: Mapping[tuple[str, str], Path], folders: Sequence[Path]
) -> dict[str, DatasetSpec]:
    """Return all datasets, those with `from` as `CuratedDatasetSpec`.

    Args:
        datasets: the entries of all `datasets.yaml`, by name.
        origins: ("datasets", name) -> the file of the entry, for errors.
        folders: the folders of the configuration.

    Raises:
        InputError: an entry names itself, a dataset that does not exist, or a file that does not exist.
    """
    found: dict[str, DatasetSpec] = {}

    def resolved(name: str, following: tuple[str, ...] = ()) -> DatasetSpec:
        if name in found:
            return found[name]
        entry = datasets[name]
        if isinstance(entry, CuratedEntry):
            where = f"{origins['datasets', name]}: {name}"
            if entry.made_from in (name, *following):
                raise InputError(f"{where}.from: {name} would be made from itself; name another dataset")
            if entry.made_from not in datasets:
                others = ", ".join(other for other in datasets if other != name)
                raise InputError(
                    f"{where}.from: {entry.made_from!r} is not in datasets.yaml; allowed: {others or 'none'}"
                )
            parent = resolved(entry.made_from, (name, *following))
            file = _curation_file(f"{where}.curated_by", entry.curated_by, folders)
            found[name] = CuratedDatasetSpec.model_construct(
                name=name,
                format=parent.format,
                sizes=parent.sizes,
                seed=parent.seed,
                path=str(file),
                made_from=entry.made_from,
                curated_by=entry.curated_by,
                original=parent.original if isinstance(parent, CuratedDatasetSpec) else parent,
            )
        else:
            found[name] = entry
        return found[name]

    return {name: resolved(name) for name in datasets}


def _curation_file(where: str, name: str, folders: Sequence[Path]) -> Path:
    """Return the file of a curation."""
    every = [
        file
        for folder in folders
        for file in sorted((folder / FOLDER).glob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]
    files = [file for file in every if file.stem == name]
    if len(files) > 1:
        raise InputError(f"{where}: both {files[0]} and {files[1]} are called {name!r}; rename one of them")
    if not files:
        names = ", ".join(sorted({file.stem for file in every})) or "none"
        raise InputError(
            f"{where}: no file {name}.csv or {name}.parquet in {folders[-1] / FOLDER}; put the reviewed file there "
            f"(found: {names})"
        )
    return files[0]
