"""The configuration that makes an exported model again, as a model card shows it.

Paths and addresses of the machine that trained it are left out: a card is published.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

_PATHS = ("path", "chat_template")


def entries(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return file of the configuration -> its content.

    Args:
        fields: of the export.
    """
    study, ablation = with_ablation(fields["study"]), fields["ablation"]
    found = {
        "models": fields["models"],
        "datasets": fields["datasets"],
        "studies": {study["name"]: study},
        **({"ablations": {ablation["name"]: ablation}} if ablation else {}),
    }
    return {
        f"{kind}.yaml": yaml.safe_dump(
            {name: _entry(entry) for name, entry in found[kind].items()}, sort_keys=False, allow_unicode=True, width=100
        )
        for kind in found
    }


def with_ablation(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study's fields with an ablation, which an entry must have; for the teacher, any one does."""
    return {**study, "ablations": study["ablations"] or ["mle"]}


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry without its name, without keys that are not set, and without folders of a machine."""
    plain = {key: _plain(value) for key, value in entry.items() if key != "name"}
    kept = {key: value for key, value in plain.items() if value not in (None, [], {})}
    return {key: _without_folder(value) if key in _PATHS else value for key, value in kept.items()}


def _without_folder(value: Any) -> Any:
    # A template is stored by its text, and an address belongs to everyone who may read it.
    if not isinstance(value, str) or "{" in value or "://" in value:
        return value
    return PurePath(value).name


def _plain(value: Any) -> Any:
    """Return a value without keys that are not set."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
