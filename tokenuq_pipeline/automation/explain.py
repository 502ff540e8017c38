"""Why an asset is stale, in words: which field of its spec changed, which input, since when its code differs.

Reads manifests and the assets as they are configured now; decides nothing (`staleness.py`).
"""

from collections.abc import Iterator, Mapping

from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.store import Store

MOST_FIELDS = 5
NEW_CODE = "has a new code version"


def explain(reason: str, asset: StageAsset, store: Store) -> str:
    """The reason of Dagster's, with what is behind a new code version spelled out."""
    manifest = store.read_manifest(asset.name)
    if manifest is None or NEW_CODE not in reason:
        return reason
    fields = list(changed_fields(manifest["fields"], asset.fields))
    if not fields:
        before, now = (version.partition("-")[0] for version in (manifest["code_version"], asset.code_version))
        fields = [f"the stage's code changed (revision {before} -> {now})"]
    elif len(fields) > MOST_FIELDS:
        fields = [*fields[:MOST_FIELDS], f"{len(fields) - MOST_FIELDS} more changes"]
    return reason.replace(NEW_CODE, ", ".join(fields))


def changed_fields(before, now, path: str = "") -> Iterator[str]:
    """`select.quantile: 0.25 -> 0.1` of each value that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            inner = f"{path}.{name}" if path else name
            if name not in now:
                yield f"{inner}: no longer there"
            elif name not in before:
                yield f"{inner}: new"
            else:
                yield from changed_fields(before[name], now[name], inner)
    elif before != now:
        yield f"{path}: {_short(before)} -> {_short(now)}"


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
