"""Tasks of lm-eval that measure the models of a study: the key `evaluation.lm_eval`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_serializer, model_validator

from tokenuq_ml.config.base import SPLITS, Spec, spec_hash
from tokenuq_ml.file_hashes import sha256_of

NO_DATA = "content:missing"
"""The digest of a file or folder that cannot be read; the evaluation fails and says so."""
_DIGEST = "content:"
"""How digests of local data begin, which stand in the place of paths in the fields of an evaluation."""
TaskData = str | dict[str, str]
"""A folder with a copy of the task's dataset, or split -> a file, or a folder of files."""


class LmEvalSpec(Spec):
    """Tasks of lm-eval, measured by lm-eval's own evaluator on the loaded model."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1, description="tasks, groups or tags of lm-eval")]
    limit: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="the first samples of each task; default: all"
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="examples before each question; default: the task's own number"
    )
    chat: bool = Field(default=False, description="whether prompts are turns in the model's chat template")
    batch_size: Annotated[int, Field(gt=0, description="requests per batch")] = 16
    split: Literal["test", "ood"] = Field(
        default="ood", description="split that the results are reported for; test: in distribution"
    )
    data: dict[str, TaskData] = Field(
        default={},
        description="entry of `tasks` -> local data: a folder with a copy of its dataset, or one file per split",
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.tasks:
            if self.tasks.count(name) > 1:
                raise ValueError(f"'tasks' names {name!r} twice; remove one")
        for name, data in self.data.items():
            if name not in self.tasks:
                raise ValueError(f"'data' names {name!r}, which is not in 'tasks'; allowed: {', '.join(self.tasks)}")
            if isinstance(data, dict) and not data:
                raise ValueError(f"'data.{name}' is empty; name a file per split, for example {SPLITS[-2]}")
        return self

    @field_serializer("data")
    def _digests(self, data: dict[str, TaskData]) -> dict[str, TaskData]:
        """Return the digest of each file, so that its content is part of a version and its place is not."""
        return _changed(data, data_digest)

    def with_paths(self, change: Callable[[str], str]) -> "LmEvalSpec":
        """Return the spec with `change(path)` in the place of each local path."""
        return self.model_copy(update={"data": _changed(self.data, change)})

    @property
    def paths(self) -> dict[str, str]:
        """Input of the evaluation -> local path: `lm_eval/<task>`, or `lm_eval/<task>/<split>`."""
        found = {}
        for name, data in self.data.items():
            if isinstance(data, str):
                found[f"lm_eval/{name}"] = data
            else:
                found |= {f"lm_eval/{name}/{split}": path for split, path in data.items()}
        return found


def _changed(data: dict[str, TaskData], change: Callable[[str], str]) -> dict[str, TaskData]:
    return {
        name: change(one) if isinstance(one, str) else {split: change(path) for split, path in one.items()}
        for name, one in data.items()
    }


def data_digest(path: str) -> str:
    """Return a digest of the content of a file, or of all files of a folder; `NO_DATA` if they cannot be read."""
    if path.startswith(_DIGEST):
        return path
    root = Path(path)
    try:
        if root.is_dir():
            files = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
            # A folder of the hub's cache holds links.
            by_name = {file.relative_to(root).as_posix(): sha256_of(os.path.realpath(file)) for file in files}
            return _DIGEST + spec_hash(by_name) if by_name else NO_DATA
        return _DIGEST + sha256_of(os.path.realpath(root))[:12]
    except OSError:
        return NO_DATA
