"""Reading of one YAML file: a mapping, in UTF-8, in which no key stands twice."""

from pathlib import Path
from typing import Any

import yaml

from tokenuq_ml.errors import InputError


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file; an empty file is an empty mapping.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or not YAML, names a key twice, or holds no mapping.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line}: is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        # A subclass of the safe loader, which makes no Python objects.
        raw = yaml.load(text, _UniqueKeys) or {}  # noqa: S506
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path}: not YAML: nested too deeply") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must be a mapping from names to entries")
    return raw


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which refuses a repeated key. PyYAML keeps the last of its values without a word.

    Not the loader in C: deep nesting crashes it.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        seen: dict[str, int] = {}
        for key, _ in node.value:
            # `<<` may stand several times, and a key beside it overrides a merged one.
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                first = f"{key.value!r} stands here and in line {seen[key.value]}; remove or rename one of them"
                raise yaml.constructor.ConstructorError(None, None, first, key.start_mark)
            seen[key.value] = key.start_mark.line + 1
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping
