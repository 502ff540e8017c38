"""Versions of the packages that results depend on, read from their metadata without importing them, and of our code."""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
    "vllm",
    "dagster",
)


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of each installed package, by name, and `code_hash` as that of `tokenuq_ml`."""
    found = {"python": platform.python_version(), "tokenuq_ml": code_hash()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_hash() -> str:
    """Return twelve hex digits over the Python files of `tokenuq_ml`, from which this process was started."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
