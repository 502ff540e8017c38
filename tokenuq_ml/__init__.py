"""The ML side of tokenuq: models, token tables, uncertainty, training, evaluation. Knows nothing of Dagster.

`TokenObjective` (a mixin over any Trainer), `score_tokens` and `measure_bald` are for others' loops. They are
imported when first asked for, so that what needs no torch starts without it.
"""

from importlib import import_module

_PUBLIC = {
    "TokenObjective": "training.token_objective",
    "AblationSpec": "config",
    "OnlineTeacher": "training.teacher",
    "SeparateTeacher": "training.teacher",
    "score_tokens": "scoring.api",
    "measure_bald": "scoring.api",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
