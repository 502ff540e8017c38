"""A user's own functions, named `module:function`: found without being imported, hashed, imported where they run.

Definitions must load fast and run nobody's code, so a module is looked up as a file and read as
text; only a training process imports it. Does not know what the function is for.
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

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_reference(name: str) -> bool:
    """Whether `name` has the form `module:function`."""
    return REFERENCE.fullmatch(name) is not None


def search_path() -> list[str]:
    """Where modules are looked for: where Python does, and beside the user's own configuration."""
    own = os.environ.get("TOKENUQ_CONFIG")
    return [*sys.path, *([str(Path(own).expanduser().resolve())] if own else [])]


def find(reference: str) -> Path:
    """The file of the function's module.

    Raises:
        ValueError: no such module, or the file defines no such function at its top level.
    """
    module, function = reference.split(":")
    path, spec = search_path(), None
    for depth, _ in enumerate(parts := module.split(".")):
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), path)
        path = list(spec.submodule_search_locations or []) if spec else []
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(
            f"{reference!r}: no module {module!r} on Python's path or in the folder TOKENUQ_CONFIG; put its file there"
        )
    file = Path(spec.origin)
    defined = [node.name for node in _tree(file).body if isinstance(node, ast.FunctionDef)]
    if function not in defined:
        raise ValueError(
            f"{reference!r}: {file} defines no function {function!r}; it has {', '.join(defined) or 'none'}"
        )
    return file


def source_hash(reference: str) -> str:
    """Twelve hex digits over the module's code; comments and layout do not count."""
    return hashlib.sha256(ast.dump(_tree(find(reference))).encode()).hexdigest()[:12]


def load(reference: str) -> Callable:
    """The function; imports its module.

    Raises:
        ValueError: as `find`.
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
