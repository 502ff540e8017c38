"""Local data of lm-eval's tasks: what replaces `dataset_path` and `dataset_kwargs` of a task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenuq_ml.config.lm_eval import TaskData
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.lm_eval_index import LeafTask, Resolved

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
"""Ending of a file -> the loader of the package datasets."""
_OF_THE_HUB = ("revision", "trust_remote_code", "token")
SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


def overrides(found: Resolved, data: TaskData, num_fewshot: int | None) -> dict[str, Any]:
    """Return the keys of the task's configuration that make it read local data.

    Args:
        found: what the data is of.
        data: a folder with a copy of the dataset, or split -> a file or a folder of files.
        num_fewshot: of the study; None: the task's own.

    Raises:
        InputError: a file is missing or of an unknown kind, a split is missing, or the task cannot read other data.
    """
    where = f"evaluation.lm_eval.data.{found.name}"
    if python := [task.name for task in found.tasks if task.is_python or "custom_dataset" in task.config]:
        raise InputError(f"{where}: {python[0]} reads its data by its own code, which takes no local data; remove it")
    if isinstance(data, str):
        if not Path(data).is_dir():
            raise InputError(f"{where}: {data} is no folder; name a folder with a copy of the dataset, or split: file")
        return {"dataset_path": data, "dataset_kwargs": _kept_arguments(where, found)}
    parts = sorted({str(task.config.get("dataset_name")) for task in found.tasks})
    if len(parts) > 1:
        raise InputError(
            f"{where}: its tasks read {len(parts)} parts of a dataset ({', '.join(parts[:3])}, ...), which files per "
            "split cannot tell apart; name a folder with a copy of the dataset, or list the tasks one by one"
        )
    files = {split: _files(f"{where}.{split}", path) for split, path in data.items()}
    endings = sorted({file.suffix for of_split in files.values() for file in of_split})
    kinds = {BUILDERS[ending] for ending in endings}
    if len(kinds) > 1 or {".csv", ".tsv"} <= set(endings):
        raise InputError(f"{where}: has files of several kinds ({', '.join(endings)}); convert them to one")
    keys: dict[str, Any] = {}
    for task in found.tasks:
        keys |= _splits(where, task, files, num_fewshot)
    named = {split: [str(file) for file in of_split] for split, of_split in files.items()}
    separator = {"sep": "\t"} if endings == [".tsv"] else {}
    return {
        "dataset_path": kinds.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": named, **separator},
        **keys,
    }


def _kept_arguments(where: str, found: Resolved) -> dict[str, Any]:
    """Return the arguments with which the tasks load their dataset, without those that are about the hub.

    Raises:
        InputError: the tasks differ in them.
    """
    given = [task.config.get("dataset_kwargs") or {} for task in found.tasks]
    kept = [{key: value for key, value in one.items() if key not in _OF_THE_HUB} for one in given]
    if any(one != kept[0] for one in kept):
        raise InputError(
            f"{where}: its tasks load their dataset with different arguments (`dataset_kwargs`); list the tasks one by "
            "one, each with its data"
        )
    return kept[0]


def _files(where: str, path: str) -> list[Path]:
    root = Path(path)
    files = sorted(file for file in root.iterdir() if file.is_file()) if root.is_dir() else [root]
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"{where}: {path}: no such file; correct the path")
    for file in files:
        if file.suffix not in BUILDERS:
            raise InputError(f"{where}: {file}: unknown kind of file; allowed: {', '.join(BUILDERS)}")
    return files


def _splits(where: str, task: LeafTask, files: Mapping[str, Any], num_fewshot: int | None) -> dict[str, None]:
    """Return the keys for splits that are not given and not needed: they are set to none.

    Raises:
        InputError: a split that is needed is not given, or one is given that the task does not have.
    """
    own = {key: task.config.get(key) for key in SPLIT_KEYS}
    if "split" in (task.config.get("fewshot_config") or {}):
        own["fewshot_split"] = task.config["fewshot_config"]["split"]
    known = {split for split in own.values() if split is not None}
    if unknown := sorted(files.keys() - known):
        raise InputError(f"{where}: {task.name} has no split {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
    needed, shown = {task.evaluated_split: "which is measured"}, task.config.get("fewshot_config") or {}
    own_shots = task.config.get("num_fewshot")
    # lm-eval never changes a task's own number 0.
    shots = own_shots if num_fewshot is None or own_shots == 0 else num_fewshot
    if shots and task.config.get("output_type") != "loglikelihood_rolling":
        source = next((own[key] for key in ("fewshot_split", "training_split", "validation_split") if own[key]), None)
        if source is not None and "samples" not in shown:
            needed[source] = f"from which {shots} examples are drawn"
    for split, why in needed.items():
        if split not in files:
            raise InputError(f"{where}: lacks the split {split!r} of {task.name}, {why}; add a file for it")
    return {key: None for key, split in own.items() if split is not None and split not in files}
