"""What all specs share: names, validation, hashing.

Knows what a valid name and a frozen spec are; does not know what is configured.
"""

import hashlib
import json
import re

from pydantic import AfterValidator, BaseModel, ConfigDict

from tokenuq_ml.config import user_code

NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
RESERVED_STUDIES = {"models", "datasets", "files", "comparisons"}
RESERVED_ABLATIONS = {"base", "teacher"}
SPLITS = ("train", "validation", "test", "ood")


def check_name(name: str) -> str:
    """A name that is safe as an asset key, a folder and a hive partition."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: use [a-z0-9_]+, with no '__' and no '_' at either end")
    return name


def one_of(allowed: dict[str, str], what: str):
    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")
        return value

    return AfterValidator(check)


def function_or(allowed: dict, what: str):
    """A built-in name, or `module:function` of a user's own that is there."""

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

    def fields(self) -> dict:
        """This spec as plain JSON values."""
        return self.model_dump(mode="json")


def spec_hash(fields: dict) -> str:
    """Twelve hex digits over the JSON of `fields`, independent of key order."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
