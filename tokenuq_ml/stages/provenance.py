"""What a process computes with: versions of the packages that its results depend on.

Read from what is installed, so that nothing is imported for it. Knows neither stages nor specs.
"""

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
    """Python's and each installed package's version, by name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
