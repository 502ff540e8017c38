"""Reading of `models.yaml`, `datasets.yaml`, `studies.yaml` and `ablations.yaml` into one `Config`.

A folder may also have `comparisons.yaml` and `exports.yaml`.

Every error names the file and the key, and says what is allowed or what to do.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tokenuq_ml.config import AblationSpec, DatasetSpec, ModelSpec, StudySpec
from tokenuq_ml.config.comparison_files import read_comparisons
from tokenuq_ml.config.configuration import Config
from tokenuq_ml.config.credentials import check_no_credentials
from tokenuq_ml.config.curated import KEYS, CuratedEntry, with_curated
from tokenuq_ml.config.entries import AnySpec, checked_entry, require_mapping
from tokenuq_ml.config.export import read_exports
from tokenuq_ml.config.families import with_settings
from tokenuq_ml.config.grids import check_cells, with_grids
from tokenuq_ml.config.languages import check_languages
from tokenuq_ml.config.references import check_references
from tokenuq_ml.config.sweeps import expand
from tokenuq_ml.config.yaml_file import read_mapping
from tokenuq_ml.errors import InputError

KINDS = ("models", "datasets", "studies", "ablations")


def load_config(*folders: str | Path) -> Config:
    """Read and check the configuration in `folders`.

    The first folder must hold all files but `comparisons.yaml` and `exports.yaml`. Later folders may hold any of them
    and add entries; an entry of the same name in two folders is an error.

    Raises:
        InputError: a file is missing or invalid; the message names the file and the key, and says what is allowed.
    """
    reader = _Reader([Path(folder) for folder in folders])
    models, datasets = reader.entries("models", ModelSpec), reader.datasets()
    studies, ablations = reader.entries("studies", StudySpec), reader.entries("ablations", AblationSpec)
    studies, datasets, grids = with_grids(studies, datasets, reader.origins)
    written = dict(ablations)
    studies = {name: reader.with_settings(study, written, ablations) for name, study in studies.items()}
    config = Config(models, datasets, studies, ablations, grids=grids)
    check_languages(models, datasets, studies, reader.origins)
    check_references(config, reader.origins)
    named = {name: config.studies_of(name) for name in (*config.grids, *config.studies)}
    comparisons = read_comparisons([Path(folder) for folder in folders], named, config.studies, config.ablations)
    check_cells(comparisons, grids)
    exports = read_exports([Path(folder) for folder in folders], config.studies)
    return replace(config, comparisons=comparisons, exports=exports)


def load_ablations(folder: str | Path) -> dict[str, AblationSpec]:
    """Read and check `ablations.yaml` in a folder, without what studies need of the other files.

    Raises:
        InputError: the file is missing or invalid.
    """
    return _Reader([Path(folder)]).entries("ablations", AblationSpec)


class _Reader:
    """The YAML files of some folders, and where each entry was found."""

    def __init__(self, folders: Sequence[Path]):
        self._folders = folders
        self.origins: dict[tuple[str, str], Path] = {}
        self._names_by_entry: dict[str, list[str]] = {}
        """Entry of `ablations.yaml` -> the ablations that its sweeps expand to."""

    def entries(self, kind: str, spec_class: type[AnySpec]) -> dict[str, AnySpec]:
        """Return the checked entries of `<kind>.yaml` in all folders, by name."""
        specs: dict[str, AnySpec] = {}
        for path in self._files(kind):
            for name, raw in read_mapping(path).items():
                expanded = {name: raw}
                if kind == "ablations":
                    expanded = _expand(path, name, raw)
                    self._names_by_entry.setdefault(name, []).extend(expanded)
                for full_name, single in expanded.items():
                    if (kind, full_name) in self.origins:
                        swept = f" (of {name})" if full_name != name else ""
                        raise InputError(
                            f"{path}: {full_name}{swept}: already defined in {self.origins[kind, full_name]}; "
                            "rename one of them"
                        )
                    self.origins[kind, full_name] = path
                    specs[full_name] = _parse(spec_class, path, full_name, single)
        return specs

    def datasets(self) -> dict[str, DatasetSpec]:
        """Return the checked entries of `datasets.yaml`, also those that are made from others by a reviewed file."""
        return with_curated(self.entries("datasets", DatasetSpec), self.origins, self._folders)

    def _files(self, kind: str) -> Iterator[Path]:
        for number, folder in enumerate(self._folders):
            path = folder / f"{kind}.yaml"
            if path.is_file():
                yield path
            elif number == 0:
                needed = ", ".join(f"{name}.yaml" for name in KINDS)
                raise InputError(f"{path}: missing; the folder must hold {needed}")

    def with_single_ablations(self, study: StudySpec, ablations: dict[str, AblationSpec]) -> StudySpec:
        """Return the study with the ablations that its list stands for, one by one.

        An entry of ablations.yaml stands for all ablations that it expands to, a family for those of every seed, and
        `<family>_s0` for the one of seed 0.
        """
        families = self._families(ablations)
        names: list[str] = []
        for name in study.ablations:
            first_seed = name.removesuffix("_s0")
            if name in families:
                names += families[name]
            elif name in ablations:
                names.append(name)
            elif first_seed in ablations and ablations[first_seed].seed == 0:
                names.append(first_seed)
            else:
                raise InputError(
                    f"{self.origins['studies', study.name]}: {study.name}.ablations: {name!r} is not in "
                    f"ablations.yaml; allowed: {', '.join(dict.fromkeys([*families, *ablations])) or 'none'}"
                )
        return study.model_copy(update={"ablations": tuple(dict.fromkeys(names))})

    def with_settings(
        self, study: StudySpec, written: dict[str, AblationSpec], ablations: dict[str, AblationSpec]
    ) -> StudySpec:
        """Return the study with its ablations one by one.

        Args:
            study: as its file says.
            written: what ablations.yaml has. Studies name nothing else: not what another study's `seeds` makes.
            ablations: those, and what the `seeds` and `sweep` of studies make; those of this one are added.
        """
        single = self.with_single_ablations(study, written)
        try:
            return with_settings(single, ablations)
        except ValueError as error:
            raise InputError(f"{self.origins['studies', study.name]}: {study.name}: {error}") from None

    def _families(self, ablations: dict[str, AblationSpec]) -> dict[str, list[str]]:
        """Return entry, or name without seed -> the ablations that it stands for."""
        entry_of = {name: entry for entry, names in self._names_by_entry.items() for name in names}
        families: dict[str, list[str]] = {}
        for name, ablation in ablations.items():
            for family in dict.fromkeys((entry_of[name], ablation.setting)):
                families.setdefault(family, []).append(name)
        return families


def _expand(path: Path, name: str, raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        return {name: raw}
    try:
        return expand(str(name), raw)
    except ValueError as error:
        raise InputError(f"{path}: {name}.{error}") from None


def _parse(spec_class: type[AnySpec], path: Path, name: str, raw: Any) -> AnySpec:
    require_mapping(path, name, raw)
    for key in ("path", "chat_template"):
        if isinstance(raw.get(key), str):
            raw = {**raw, key: _absolute(path.parent, raw[key])}
            if "$" in raw[key] and raw.get("id") is not None:
                # The variable is not set, and the dataset is on the hub as well.
                raw.pop(key)
    # After variables have been replaced, which may hold addresses.
    check_no_credentials(f"{path}: {name}", raw)
    if issubclass(spec_class, DatasetSpec) and set(KEYS) & set(raw):
        return cast(AnySpec, _parse(CuratedEntry, path, name, raw))
    return _with_absolute_data(checked_entry(spec_class, path, name, raw), path.parent)


def _with_absolute_data(spec: AnySpec, folder: Path) -> AnySpec:
    """Return the spec with absolute paths of the local data of lm-eval's tasks, which only studies have."""
    if not isinstance(spec, StudySpec) or spec.evaluation.lm_eval is None:
        return spec
    tasks = spec.evaluation.lm_eval.with_paths(lambda path: _absolute(folder, path))
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"lm_eval": tasks})})


def _absolute(folder: Path, written: str) -> str:
    """Return the absolute path that `written` stands for, with environment variables replaced.

    A relative path starts at `folder`, that of the YAML file; one that begins with a variable starts at the working
    directory. If a variable is not set, `written` is returned unchanged, and its user reports the error. An address
    (`s3://...`) is absolute.
    """
    folder = Path.cwd() if written.startswith("$") else folder
    expanded = os.path.expandvars(written)
    if "$" in expanded or not expanded.strip():
        return written
    # Path.resolve would raise at links in a circle, which whoever opens the file reports.
    return expanded if "://" in expanded else os.path.realpath(folder / Path(expanded).expanduser())
