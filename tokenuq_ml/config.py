"""Reads the four YAML files of `config/` into one checked `Config`.

Every error names the file, the key and the mend. Does not know what the
specs mean to a stage (`stages.py`).
"""

from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import AblationSpec, DatasetSpec, ModelSpec, Spec, StudySpec

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
        return [study.evaluation.ifeval.dataset] if study.evaluation.ifeval else []

    def used_models(self) -> list[str]:
        return list(dict.fromkeys(s.model for s in self.studies.values()))

    def used_datasets(self) -> list[str]:
        names = (n for s in self.studies.values() for n in (s.dataset, *s.ood, *self.evaluation_datasets(s)))
        return list(dict.fromkeys(names))


def load_config(*folders: str | Path) -> Config:
    """Read and check `models.yaml`, `datasets.yaml`, `studies.yaml`, `ablations.yaml`.

    The first folder must hold all four. Later folders may hold any of them and add
    entries; an entry of the same name in two folders is an error.

    Raises:
        InputError: naming file, key, what is wrong and what is allowed.
    """
    entries: dict[str, dict[str, Spec]] = {kind: {} for kind in FILES}
    origin: dict[tuple[str, str], Path] = {}
    for number, folder in enumerate(map(Path, folders)):
        for kind, spec_class in FILES.items():
            path = folder / f"{kind}.yaml"
            if not path.is_file():
                if number == 0:
                    raise InputError(f"{path}: missing; the folder must hold {', '.join(f'{k}.yaml' for k in FILES)}")
                continue
            for name, raw in _read_yaml(path).items():
                if (kind, name) in origin:
                    raise InputError(f"{path}: {name}: already defined in {origin[kind, name]}; rename one of them")
                origin[kind, name] = path
                entries[kind][name] = _parse(spec_class, path, name, raw)
    config = Config(**entries)
    _check_references(config, origin)
    return config


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
            # A relative path means "beside this file", wherever the program was started.
            raw = {**raw, key: str((path.parent / Path(raw[key]).expanduser()).resolve())}
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
        for name in config.evaluation_datasets(study):
            known(study, "evaluation.ifeval.dataset", name, "datasets")
        for name in study.ablations:
            known(study, "ablations", name, "ablations")
        splits = config.datasets[study.dataset].sizes
        for split in ("train", "validation", "test"):
            if split not in splits:
                raise InputError(
                    f"{origin['datasets', study.dataset]}: {study.dataset}.sizes: has no {split!r} split, "
                    f"which study {study.name} needs"
                )
    for kind in ("models", "datasets"):
        for name, spec in getattr(config, kind).items():
            for key in ("path", "chat_template"):
                value = getattr(spec, key, None)
                if value is not None and not Path(value).exists():
                    raise InputError(f"{origin[kind, name]}: {name}.{key}: {value}: no such file or folder")
