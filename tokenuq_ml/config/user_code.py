"""A user's own functions, named `module:function`: find and hash them without importing them, or import them.

Asset definitions must load fast and must not run a user's code, so a module is looked up as a file and read as text.
Only a training process imports it.
"""

import ast
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_reference(name: str) -> bool:
    """Return whether `name` has the form `module:function`."""
    return REFERENCE.fullmatch(name) is not None


def search_path() -> list[str]:
    """Return the folders in which modules are looked up: Python's own, then the user's configuration folder."""
    own = os.environ.get("TOKENUQ_CONFIG")
    return [*sys.path, *([str(Path(own).expanduser().resolve())] if own else [])]


def find(reference: str) -> Path:
    """Return the file of the function's module.

    Raises:
        ValueError: the module does not exist, or defines no such function at its top level.
    """
    module, function = reference.split(":")
    path, spec = search_path(), None
    for depth, _ in enumerate(parts := module.split(".")):
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), path)
        path = list(spec.submodule_search_locations or []) if spec else []
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(
            f"{reference!r}: no module {module!r} on Python's path or in the folder TOKENUQ_CONFIG; put its file in one"
        )
    file = Path(spec.origin)
    defined = [node.name for node in _tree(file).body if isinstance(node, ast.FunctionDef)]
    if function not in defined:
        raise ValueError(
            f"{reference!r}: {file} defines no function {function!r}; it defines {', '.join(defined) or 'none'}"
        )
    return file


def source_hash(reference: str) -> str:
    """Return twelve hex digits over the code of the function's module, without comments and layout."""
    return hashlib.sha256(ast.dump(_tree(find(reference))).encode()).hexdigest()[:12]


def load(reference: str) -> Callable[..., Any]:
    """Import the function's module and return the function.

    Raises:
        ValueError: the module does not exist, or defines no such function at its top level.
    """
    find(reference)
    module, function = reference.split(":")
    for folder in search_path():
        if folder not in sys.path:
            sys.path.append(folder)
    return getattr(importlib.import_module(module), function)


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"{file}, line {error.lineno}: {error.msg}") from None
