"""The machine-learning side of tokenuq: models, token tables, uncertainty, training and evaluation.

`TokenObjective` (a mixin for any Trainer), `score_tokens` and `measure_bald` are made for use in other programs. Names
are imported on first use, so that `import tokenuq_ml` does not load torch.

Does not import Dagster or `tokenuq_pipeline`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenuq_ml.config import AblationSpec
    from tokenuq_ml.scoring.api import measure_bald, score_tokens
    from tokenuq_ml.training.teacher import OnlineTeacher, SeparateTeacher
    from tokenuq_ml.training.token_objective import TokenObjective

    __version__: str

_MODULES = {
    "AblationSpec": "config",
    "OnlineTeacher": "training.teacher",
    "SeparateTeacher": "training.teacher",
    "TokenObjective": "training.token_objective",
    "measure_bald": "scoring.api",
    "score_tokens": "scoring.api",
}
__all__ = [
    "AblationSpec",
    "OnlineTeacher",
    "SeparateTeacher",
    "TokenObjective",
    "measure_bald",
    "score_tokens",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Imported here, since it loads modules that nothing else needs.
        from importlib.metadata import version

        return version("tokenuq")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), "__version__", *_MODULES])
