"""What is wrong with an entry of the configuration, in words: pydantic's errors as messages."""

from typing import Any

from pydantic import ValidationError

from tokenuq_ml.config.base import Spec


def problems(spec_class: type[Spec], error: ValidationError) -> list[str]:
    """Return `.key: message` for each thing that is wrong with an entry."""
    return [_problem_text(spec_class, problem) for problem in error.errors()]


def _problem_text(spec_class: type[Spec], problem: Any) -> str:
    """Return `.key: message` for one of pydantic's error details."""
    key = ".".join(str(part) for part in problem["loc"] if part != "name" and not _is_type(part))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown key; allowed: {', '.join(_allowed_keys(spec_class, problem['loc']))}"
    elif problem["type"] not in ("missing", "value_error"):
        message += f", got {problem['input']!r}"
    return f"{'.' + key if key else ''}: {message}"


def _is_type(part: int | str) -> bool:
    """Return whether pydantic adds this part for a member of a union, such as `constrained-float`."""
    return isinstance(part, str) and (
        part in ("bool", "float", "int", "str") or not part.isidentifier() or part[0].isupper()
    )


def _allowed_keys(spec_class: type[Spec], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the (nested) spec that holds the unknown key at `loc`."""
    for part in loc[:-1]:
        field = spec_class.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            break
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        spec_class = next((c for c in candidates if isinstance(c, type) and issubclass(c, Spec)), spec_class)
    return [field.alias or key for key, field in spec_class.model_fields.items() if key != "name"]
