"""The tasks, groups and tags of the installed lm-eval, found in its files without importing it.

lm-eval builds an index of all its tasks whenever tasks are loaded, which takes half a minute. Here the names in 14,000
files are found by their first columns, once per version, and only the files of the named tasks are parsed. Imports
neither lm_eval nor torch, so that `tokenuq plan` may ask.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.errors import InputError
from tokenuq_ml.file_hashes import cache_folder

_KEY = re.compile(r"^[\"']?(task|group|include|tag|class)[\"']?[ ]*:[ ]*(.*?)[ ]*$", re.M)
_ITEMS = re.compile(r"\n([ ]*-[ ]+[^\n]+\n?)+")
_UNSAFE = "runs code that the model has written (`unsafe_code`), which tokenuq does not"
_REFUSED_KEYS = {"doc_to_image": "asks about images", "doc_to_audio": "asks about sounds"}


@dataclass(frozen=True)
class LeafTask:
    """One task, without its data."""

    name: str
    file: Path
    config: dict[str, Any] = field(repr=False)
    """Its YAML, with includes; functions are strings."""

    @property
    def evaluated_split(self) -> str | None:
        """The split of its dataset that is measured: `test_split`, or else `validation_split`."""
        return self.config.get("test_split") or self.config.get("validation_split")

    @property
    def is_python(self) -> bool:
        """Whether the task is a Python class, which reads its data itself."""
        return "class" in self.config


@dataclass(frozen=True)
class Resolved:
    """What a name of `evaluation.lm_eval.tasks` stands for."""

    name: str
    kind: str
    """`task`, `group` or `tag`."""
    tasks: tuple[LeafTask, ...]
    files: tuple[Path, ...]
    """The files of its tasks and groups."""

    @property
    def folders(self) -> list[str]:
        """The folders that lm-eval has to look at to load it."""
        return sorted({str(file.parent) for file in self.files})


def resolve(name: str) -> Resolved:
    """Return the tasks that a name stands for.

    Raises:
        InputError: lm-eval is not installed, has no such task, or a task cannot be measured here.
    """
    index = _index()
    if not (name in index.tags or (name in index.files and index.files[name].is_file())):
        # The files may have changed since the index was kept.
        index = _index(is_new=True)
    if name in index.tags:
        kind, leaves, files = "tag", index.tags[name], []
    elif name in index.files:
        kind = "group" if _is_group(read_config(index.files[name])) else "task"
        leaves, files = (name,), []
    else:
        near = get_close_matches(name, [*index.files, *index.tags], n=4, cutoff=0.6)
        raise InputError(
            f"evaluation.lm_eval.tasks: lm-eval has no task, group or tag {name!r}"
            + (f"; did you mean {', '.join(near)}?" if near else "; `lm-eval ls tasks` lists them")
        )
    tasks: dict[str, LeafTask] = {}
    for leaf in leaves:
        for task in _leaves(index, leaf, files):
            tasks[task.name] = task
    for task in tasks.values():
        if (why := _refusal(task)) is not None:
            raise InputError(
                f"evaluation.lm_eval.tasks: {task.name!r} {why}; "
                + ("remove it" if task.name == name else f"name the other tasks of {name!r} one by one")
            )
    return Resolved(name, kind, tuple(tasks.values()), tuple(files))


def resolve_all(names: Sequence[str]) -> list[Resolved]:
    """Return what each name stands for.

    Raises:
        InputError: as `resolve`, or two names share a task.
    """
    found = [resolve(name) for name in names]
    owner: dict[str, str] = {}
    for one in found:
        for task in one.tasks:
            if task.name in owner:
                raise InputError(
                    f"evaluation.lm_eval.tasks: {task.name!r} is part of {owner[task.name]!r} and of {one.name!r}; "
                    "remove one of them"
                )
            owner[task.name] = one.name
    return found


@dataclass(frozen=True)
class _Index:
    files: dict[str, Path]
    """Task or group -> its file."""
    tags: dict[str, tuple[str, ...]]


def _index(is_new: bool = False) -> _Index:
    """Return the index of the installed lm-eval, which is kept on disk; `is_new`: from its files."""
    package = find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "evaluation.lm_eval needs the package lm_eval, which is not installed: pip install 'tokenuq[quickstart]'"
        )
    root = Path(package.submodule_search_locations[0], "tasks")
    return _scanned(root) if is_new else _kept(root)


@cache
def _kept(root: Path) -> _Index:
    kept = cache_folder() / f"lm_eval_tasks_{version('lm_eval')}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(kept.read_bytes())
        if found["root"] == [str(root), root.stat().st_mtime_ns]:
            files = {name: root / path for name, path in found["files"].items()}
            return _Index(files, {tag: tuple(names) for tag, names in found["tags"].items()})
    return _scanned(root)


def _scanned(root: Path) -> _Index:
    files: dict[str, Path] = {}
    tags: dict[str, list[str]] = {}
    # lm-eval's own order, in which the first file of a name counts.
    for path in sorted(root.glob("**/*.yaml"), key=lambda path: path.as_posix()):
        own = _keys(path)
        name = _name(path, own)
        if name is None or name in files:
            continue
        files[name] = path
        if "group" not in own or "class" in own:
            for tag in _tags(path, own):
                tags.setdefault(tag, []).append(name)
    # A task or group hides a tag of its name.
    index = _Index(files, {tag: tuple(sorted(names)) for tag, names in tags.items() if tag not in files})
    content = {
        "root": [str(root), root.stat().st_mtime_ns],
        "files": {name: path.relative_to(root).as_posix() for name, path in files.items()},
        "tags": index.tags,
    }
    kept = cache_folder() / f"lm_eval_tasks_{version('lm_eval')}.json"
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_write(kept, durable=False) as file:
            file.write(json.dumps(content).encode())
    return index


def _keys(path: Path) -> dict[str, list[str]]:
    """Return the values of a file's keys `task`, `group`, `include` and `tag`; of lists, all items."""
    text, found = path.read_text(encoding="utf-8"), dict[str, list[str]]()
    for match in _KEY.finditer(text):
        key, value = match[1], match[2]
        if value and not value.startswith("#"):
            found[key] = [_plain(item) for item in value.strip("[]").split(",")]
        elif items := _ITEMS.match(text, match.end()):
            found[key] = [_plain(line.strip()[1:]) for line in items[0].strip("\n").split("\n") if line.strip()]
    return found


def _plain(value: str) -> str:
    return re.sub(r"\s+#.*$", "", value).strip().strip("'\"")


def _name(path: Path, own: dict[str, list[str]]) -> str | None:
    """Return the name that a file defines; None for a template."""
    for key in ("task",) if "class" in own else ("group", "task"):
        values = own.get(key) or (_inherited(path, own, key) if key == "task" else [])
        if len(values) == 1:
            return values[0]
    return None


def _tags(path: Path, own: dict[str, list[str]]) -> list[str]:
    return own.get("tag") or _inherited(path, own, "tag")


def _inherited(path: Path, own: dict[str, list[str]], key: str) -> list[str]:
    """Return the values of a key that a file takes from the files that it includes."""
    for include in reversed(own.get("include", [])):
        template = path.parent / include
        if template.is_file():
            further = _template_keys(template)
            if values := further.get(key) or _inherited(template, further, key):
                return values
    return []


_template_keys = cache(_keys)


def _leaves(index: _Index, name: str, files: list[Path]) -> Iterator[LeafTask]:
    """Yield the tasks of a task or group, and add the files that define it to `files`."""
    file = index.files[name]
    config = read_config(file)
    files.append(file)
    if not _is_group(config):
        yield LeafTask(name, file, config)
        return
    yield from _members(index, name, config, files)


def _is_group(config: dict[str, Any]) -> bool:
    return isinstance(config.get("group"), str) and "class" not in config


def _members(index: _Index, group: str, config: dict[str, Any], files: list[Path]) -> Iterator[LeafTask]:
    for item in config["task"] if isinstance(config.get("task"), list) else []:
        given = item if isinstance(item, dict) else {"task": item}
        child = str(given.get("group") or given.get("task"))
        if child in index.files:
            for leaf in _leaves(index, child, files):
                yield LeafTask(leaf.name, leaf.file, {**leaf.config, **_task_keys(given)})
        elif child in index.tags:
            for name in index.tags[child]:
                yield from _leaves(index, name, files)
        elif "group" in given:
            yield from _members(index, f"{group}::{child}", given, files)
        else:
            yield LeafTask(f"{group}::{child}", index.files.get(group, files[-1]), given)


def _task_keys(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in ("task", "group")}


class _Loader(yaml.CSafeLoader):
    """Reads `!function utils.name` as the string `utils.name`."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: getattr(node, "value", suffix))


def read_config(path: Path) -> dict[str, Any]:
    """Return a task's YAML file, merged over those that it includes."""
    config = yaml.load(path.read_bytes(), _Loader)  # noqa: S506  (a subclass of the safe loader)
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        merged |= read_config(path.parent / include)
    return merged | config


def _refusal(task: LeafTask) -> str | None:
    """Return why a task cannot be measured here, if it cannot."""
    if task.config.get("unsafe_code"):
        return _UNSAFE
    for key, why in _REFUSED_KEYS.items():
        if task.config.get(key) is not None:
            return f"{why}, and the study's models read text"
    if "judge" in str(task.config.get("process_results")).lower():
        return "asks a judge behind an API, which would cost money unseen"
    return None
