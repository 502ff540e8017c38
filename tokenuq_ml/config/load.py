"""Reads the four YAML files of `config/` into one checked `Config`.

Every error names the file, the key and the mend. Sweeps are opened out (`sweeps.py`), and a
study's ablations are named one by one. Does not know what the specs mean to a stage (`stages.py`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from tokenuq_ml.config import AblationSpec, DatasetSpec, ModelSpec, Spec, StudySpec
from tokenuq_ml.config.sweeps import expand
from tokenuq_ml.errors import InputError

FILES = {"models": ModelSpec, "datasets": DatasetSpec, "studies": StudySpec, "ablations": AblationSpec}


@dataclass(frozen=True)
class Config:
    """Every entry of the four files, by name."""

    models: dict[str, ModelSpec]
    datasets: dict[str, DatasetSpec]
    studies: dict[str, StudySpec]
    ablations: dict[str, AblationSpec]

    def evaluation_datasets(self, study: StudySpec) -> list[str]:
        """Datasets that a study only evaluates on, beside `ood`."""
        return list(dict.fromkeys(study.evaluation.datasets.values()))

    def evaluation_models(self, study: StudySpec) -> list[str]:
        """Models that a study only evaluates with, as judges."""
        return [study.evaluation.judge_model] if study.evaluation.judge_model else []

    def models_of(self, study: StudySpec) -> list[str]:
        """Every model that a study needs, the one that it trains first."""
        return list(dict.fromkeys((study.model, *self.evaluation_models(study))))

    def datasets_of(self, study: StudySpec) -> list[str]:
        """Every dataset that a study needs: what it trains on, what it scores, what it asks."""
        return list(dict.fromkeys((study.dataset, *study.ood, *self.evaluation_datasets(study))))


def load_config(*folders: str | Path) -> Config:
    """Read and check `models.yaml`, `datasets.yaml`, `studies.yaml`, `ablations.yaml`.

    The first folder must hold all four. Later folders may hold any of them and add
    entries; an entry of the same name in two folders is an error.

    Raises:
        InputError: naming file, key, what is wrong and what is allowed.
    """
    entries: dict[str, dict[str, Spec]] = {kind: {} for kind in FILES}
    origin: dict[tuple[str, str], Path] = {}
    families: dict[str, list[str]] = {}
    for number, folder in enumerate(map(Path, folders)):
        for kind, spec_class in FILES.items():
            path = folder / f"{kind}.yaml"
            if not path.is_file():
                if number == 0:
                    raise InputError(f"{path}: missing; the folder must hold {', '.join(f'{k}.yaml' for k in FILES)}")
                continue
            for name, raw in _read_yaml(path).items():
                swept = _expand(path, name, raw) if kind == "ablations" else {name: raw}
                for full, one in swept.items():
                    if (kind, full) in origin:
                        of = f" (of {name})" if full != name else ""
                        raise InputError(
                            f"{path}: {full}{of}: already defined in {origin[kind, full]}; rename one of them"
                        )
                    origin[kind, full] = path
                    spec = entries[kind][full] = _parse(spec_class, path, full, one)
                    if kind == "ablations":
                        for family in dict.fromkeys((name, spec.family)):
                            families.setdefault(family, []).append(full)
    studies = {
        name: _with_ablations(study, entries["ablations"], families, origin)
        for name, study in entries["studies"].items()
    }
    config = Config(**{**entries, "studies": studies})
    _check_references(config, origin)
    return config


def _expand(path: Path, name, raw) -> dict[str, dict]:
    if not isinstance(raw, dict):
        return {name: raw}
    try:
        return expand(str(name), raw)
    except ValueError as error:
        raise InputError(f"{path}: {name}.{error}") from None


def _with_ablations(
    study: StudySpec, ablations: dict[str, Spec], families: dict[str, list[str]], origin: dict[tuple[str, str], Path]
) -> StudySpec:
    """The study with its ablations named one by one.

    An entry of ablations.yaml, and a family, stand for all that is of them; `<family>_s0` is the one of seed 0.
    """
    names: list[str] = []
    for name in study.ablations:
        first = name.removesuffix("_s0")
        if name in families:
            names += families[name]
        elif name in ablations:
            names.append(name)
        elif first in ablations and ablations[first].seed == 0:
            names.append(first)
        else:
            raise InputError(
                f"{origin['studies', study.name]}: {study.name}.ablations: {name!r} is not in ablations.yaml; "
                f"allowed: {', '.join(dict.fromkeys([*families, *ablations])) or 'none'}"
            )
    return study.model_copy(update={"ablations": tuple(dict.fromkeys(names))})


def _read_yaml(path: Path) -> dict:
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must be a mapping from names to entries")
    return raw


def _parse(spec_class: type[Spec], path: Path, name, raw) -> Spec:
    if not isinstance(raw, dict):
        raise InputError(f"{path}: {name}: must be a mapping, is {type(raw).__name__}")
    for key in ("path", "chat_template"):
        if isinstance(raw.get(key), str):
            raw = {**raw, key: _place(path.parent, raw[key])}
            if "$" in raw[key] and raw.get("id") is not None:
                # The variable is not set, and the hub has it too.
                raw.pop(key)
    try:
        return spec_class(**{**raw, "name": name})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"] if part != "name")
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                message = f"unknown key; allowed: {', '.join(_allowed_keys(spec_class, problem['loc']))}"
            elif problem["type"] not in ("missing", "value_error"):
                message += f", got {problem['input']!r}"
            lines.append(f"{path}: {name}{'.' + key if key else ''}: {message}")
        raise InputError("\n".join(lines)) from None


def _place(folder: Path, written: str) -> str:
    """A relative path means "beside this file", wherever the program was started; in a variable, from where it was.

    Environment variables are put in; with one that is not set the path stays as written, and is an error for whoever
    uses it.
    """
    folder = Path.cwd() if written.startswith("$") else folder
    expanded = os.path.expandvars(written)
    return written if "$" in expanded or not expanded.strip() else str((folder / Path(expanded).expanduser()).resolve())


def _allowed_keys(spec_class: type[Spec], loc: tuple) -> list[str]:
    """The keys of the (nested) spec in which the unknown key at `loc` stands."""
    for part in loc[:-1]:
        field = spec_class.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            break
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        spec_class = next((c for c in candidates if isinstance(c, type) and issubclass(c, Spec)), spec_class)
    return [key for key in spec_class.model_fields if key != "name"]


def _check_references(config: Config, origin: dict[tuple[str, str], Path]) -> None:
    def known(study: StudySpec, key: str, name: str, kind: str) -> None:
        if name not in getattr(config, kind):
            allowed = ", ".join(getattr(config, kind)) or "none"
            raise InputError(
                f"{origin['studies', study.name]}: {study.name}.{key}: {name!r} is not in {kind}.yaml; "
                f"allowed: {allowed}"
            )

    for study in config.studies.values():
        known(study, "model", study.model, "models")
        known(study, "dataset", study.dataset, "datasets")
        for name in study.ood:
            known(study, "ood", name, "datasets")
        for key, name in study.evaluation.datasets.items():
            known(study, f"evaluation.{key}", name, "datasets")
        for name in config.evaluation_models(study):
            known(study, "evaluation.alpaca_eval.judge.local_model", name, "models")
        splits = config.datasets[study.dataset].sizes
        for split in ("train", "validation", "test"):
            if split not in splits:
                raise InputError(
                    f"{origin['datasets', study.dataset]}: {study.dataset}.sizes: has no {split!r} split, "
                    f"which study {study.name} needs"
                )
    # A dataset's file may arrive later; it is missed when the dataset is made.
    for name, spec in config.models.items():
        for key in ("path", "chat_template"):
            value = getattr(spec, key)
            if value is not None and "$" not in value and not Path(value).exists():
                raise InputError(f"{origin['models', name]}: {name}.{key}: {value}: no such file or folder")
