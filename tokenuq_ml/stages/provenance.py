"""Versions of the packages that results depend on, read from their metadata without importing them."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "tokenuq",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "datasets",
    "numpy",
    "polars",
    "pyarrow",
    "lm_eval",
    "reasoning-gym",
    "dagster",
)


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of each installed package, by name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
