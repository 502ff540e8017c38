"""Explain why an asset is stale: the field of its spec that changed, the input, or the revision of its stage.

Reads manifests and the current configuration. What is stale is decided in `staleness.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.store import Store

MAX_FIELDS = 5
NEW_CODE = "has a new code version"
"""Dagster's words."""


def explain(reason: str, asset: StageAsset, store: Store) -> str:
    """Return Dagster's reason with a new code version spelled out as the changes behind it."""
    manifest = store.read_manifest(asset.name)
    if manifest is None or NEW_CODE not in reason:
        return reason
    changes = list(changed_fields(manifest.fields, asset.fields))
    if not changes:
        before, now = (version.partition("-")[0] for version in (manifest.code_version, asset.code_version))
        changes = [f"the stage's code changed (revision {before} -> {now})"]
    elif len(changes) > MAX_FIELDS:
        changes = [*changes[:MAX_FIELDS], f"{len(changes) - MAX_FIELDS} more changes"]
    return reason.replace(NEW_CODE, ", ".join(changes))


def changed_fields(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield one entry per value that differs, such as `select.quantile: 0.25 -> 0.1`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            inner = f"{path}.{name}" if path else name
            if name not in now:
                yield f"{inner}: removed"
            elif name not in before:
                yield f"{inner}: new"
            else:
                yield from changed_fields(before[name], now[name], inner)
    elif before != now:
        yield f"{path}: {_short(before)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
