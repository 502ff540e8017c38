"""The entries of YAML files that `tokenuq ablate` makes of its flags, and the folder that keeps them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenuq_ml.atomic_files import atomic_write, make_folders
from tokenuq_ml.errors import InputError

if TYPE_CHECKING:
    from tokenuq_ml.config.load import Config

FILES = ("models", "datasets", "studies")
Entries = dict[str, dict[str, dict[str, Any]]]
"""File without `.yaml` -> name -> entry."""


def entries_of(options: argparse.Namespace, config: "Config") -> Entries:
    """Return the new entries: of the model and the datasets unless the configuration has them, and of the study.

    Raises:
        InputError: there is no such model or data, or the rows fit no format.
    """
    from tokenuq_ml.config.given import model_spec, name_of

    found: Entries = {kind: {} for kind in FILES}
    model = options.model
    if model not in config.models:
        spec = model_spec(model)
        model = spec.name
        found["models"][model] = _without_defaults(spec)
    dataset = _dataset(options.data, options, config, found)
    ood = [_dataset(each, options, config, found, is_ood=True) for each in options.ood]
    name = options.name or f"{name_of(options.data, 'data')}_{name_of(model, 'model')}"
    train = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
    }
    found["studies"][name] = {
        "model": model,
        "dataset": dataset,
        **({"ood": ood} if ood else {}),
        "max_length": options.max_length,
        "train": train,
        **({"seeds": options.seeds} if options.seeds is not None else {}),
        "ablations": options.ablation,
        "enabled": False,
    }
    return found


def _dataset(given: str, options: argparse.Namespace, config: "Config", found: Entries, is_ood: bool = False) -> str:
    """Return the name of a dataset, whose entry is added to `found` unless the configuration has one."""
    from tokenuq_ml.config.given import dataset_keys, name_of
    from tokenuq_ml.data.guessed_format import guess_format
    from tokenuq_ml.data.own_splits import SHARES, ood_keys, split_keys

    if given in config.datasets:
        return given
    name = name_of(given, "data")
    # Repeated questions are left out, as in any study.
    keys = {key: value for key, value in dataset_keys(given).items() if key != "duplicates"}
    form = (None if is_ood else options.format) or guess_format({**keys, "name": name, "sizes": "all"}, given)
    if is_ood:
        rows = ood_keys({**keys, "name": name, "format": form})
    elif options.rows is not None:
        rows = {"sizes": {split: max(1, round(share * options.rows)) for split, share in SHARES.items()}}
    else:
        rows = split_keys({**keys, "name": name, "format": form})
    if name in found["datasets"]:
        raise InputError(f"{given}: another dataset has the name {name!r} too; rename one of the files")
    found["datasets"][name] = {"format": form, **keys, **rows}
    return name


def _without_defaults(spec: Any) -> dict[str, Any]:
    """Return the keys of an entry that differ from their defaults."""
    return {key: value for key, value in spec.model_dump(mode="json", exclude_defaults=True).items() if key != "name"}


def as_yaml(entries: Entries) -> dict[str, str]:
    """Return file -> the text of its new entries; files without one are left out."""
    import yaml

    return {
        f"{kind}.yaml": yaml.safe_dump(named, sort_keys=False, allow_unicode=True, width=120)
        for kind, named in entries.items()
        if named
    }


def unsaved(entries: Entries, config: "Config", folder: Path) -> Entries:
    """Return the entries that the folder lacks; those that it has already are the same.

    Raises:
        InputError: a name stands for something else, in the folder or in the shipped configuration.
    """
    from tokenuq_ml.config.yaml_file import read_mapping

    left: Entries = {kind: {} for kind in FILES}
    for kind, named in entries.items():
        path = folder / f"{kind}.yaml"
        there = read_mapping(path) if path.is_file() else {}
        known = getattr(config, kind)
        for name, entry in named.items():
            if name not in there and name not in known:
                left[kind][name] = entry
            elif there.get(name) != entry:
                where = path if name in there else f"the shipped {kind}.yaml"
                remedy = "give the study another --name" if kind == "studies" else "rename the file, or name its entry"
                raise InputError(f"{name}: {where} has another entry of this name; {remedy}")
    return left


def save(entries: Entries, folder: Path) -> None:
    """Add the entries to the end of the folder's files, which keep their text."""
    make_folders(folder)
    for name, text in as_yaml(entries).items():
        path = folder / name
        before = path.read_text(encoding="utf-8").rstrip("\n") + "\n\n" if path.is_file() else ""
        with atomic_write(path) as file:
            file.write((before + text).encode())
