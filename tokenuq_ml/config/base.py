"""What all specs share: names, validation and hashing."""

import hashlib
import json
import re
from collections.abc import Collection
from functools import cache
from typing import Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from tokenuq_ml.config import user_code

NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
RESERVED_STUDIES = {"models", "datasets", "files", "curation", "comparisons", "export", "verify"}
Split = Literal["train", "validation", "test", "ood"]
SPLITS: tuple[Split, ...] = get_args(Split)

BASE_ROW, TEACHER_ROW = "base", "teacher"
REFERENCE_ROWS = (BASE_ROW, TEACHER_ROW)
"""The models that every study evaluates next to its students.

Tables store them as `ablation=base` (the model without an adapter) and `ablation=teacher` (the baseline teacher), so
no ablation may have these names.
"""


def check_name(name: str) -> str:
    """Return `name` if it is safe as an asset key, a folder and a hive partition.

    Raises:
        ValueError: the name has other characters than `[a-z0-9_]`, or an underscore where none may be.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: use [a-z0-9_]+, with no '__' and no '_' at either end")
    return name


def one_of(allowed: Collection[str], what: str) -> AfterValidator:
    """Return a validator that accepts the `allowed` names; `what` names their kind in its error."""

    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")
        return value

    return AfterValidator(check)


def function_or(allowed: Collection[str], what: str) -> AfterValidator:
    """Return a validator that accepts the `allowed` names and every `module:function` that can be found."""

    def check(value: str) -> str:
        if user_code.is_reference(value):
            user_code.find(value)
        elif value not in allowed:
            raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}, or module:function")
        return value

    return AfterValidator(check)


class Spec(BaseModel):
    """Base of all specs: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset()
    """Keys that earlier versions lack. They are left out, at any depth, while they have their default, so that the code
    versions of existing entries stay the same."""

    def fields(self) -> dict[str, Any]:
        """Return this spec as plain JSON values, without keys of `ADDED_LATER` that have their default."""
        return self.model_dump(mode="json")

    @model_serializer(mode="wrap")
    def _without_defaults_of_later_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = dump(self)
        for name, default in _later_defaults(type(self)):
            if name in values and getattr(self, name) == default:
                del values[name]
        return values

    @classmethod
    def _default(cls, key: str) -> Any:
        return cls.model_fields[key].get_default(call_default_factory=True)


@cache
def _later_defaults(kind: type[Spec]) -> tuple[tuple[str, Any], ...]:
    """Return the keys of `ADDED_LATER` and their defaults. A graph of thousands of assets asks for them often."""
    return tuple((name, kind._default(name)) for name in sorted(kind.ADDED_LATER))


def spec_hash(fields: dict[str, Any]) -> str:
    """Return twelve hex digits over the JSON of `fields`, independent of the order of keys."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
