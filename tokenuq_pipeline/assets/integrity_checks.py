"""The check `files_intact` of every asset: do its files match the hashes that its manifest recorded?

One op evaluates it for all assets, so that a job of 500 assets is one step. It reads every file, so the jobs of studies
leave it out: the job `verify` evaluates it, weekly if its schedule is switched on, and so does whoever materialises
single assets in the UI. It blocks nothing: a stage compares what it reads itself (`tokenuq_ml/stages/input_files.py`).
"""

from collections.abc import Iterable, Iterator

import dagster as dg

from tokenuq_ml.tables.integrity import REPAIR
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.assets.check_outcome import Outcome, outcome
from tokenuq_pipeline.runtime.store import Store

NAME = "files_intact"
SHOWN = 5
"""Damaged files that a result lists."""


def intact_key(asset: dg.AssetKey) -> dg.AssetCheckKey:
    """Return the key of an asset's check."""
    return dg.AssetCheckKey(asset, NAME)


def build_integrity_checks(assets: Iterable[StageAsset]) -> dg.AssetChecksDefinition:
    """Return the checks of all assets, evaluated by one op."""
    description = (
        "Check that every file of the asset has the SHA-256 that its manifest recorded, and that it has no more."
    )

    @dg.multi_asset_check(
        name="verify_files",
        specs=[dg.AssetCheckSpec(NAME, asset=asset.key, description=description) for asset in assets],
        can_subset=True,
        required_resource_keys={"store"},
    )
    def verify_files(context) -> Iterator[dg.AssetCheckResult]:
        for check in sorted(context.selected_asset_check_keys, key=str):
            found = files_intact(context.resources.store, check.asset_key.to_user_string())
            yield found._replace(asset_key=check.asset_key, check_name=check.name)

    return verify_files


def files_intact(store: Store, asset: str) -> Outcome:
    """Read every file of an asset and compare it with its manifest."""
    problems = store.problems(asset)
    if not problems:
        files = store.read_manifest(asset).files
        size = sum(file.bytes for file in files)
        return outcome(True, f"{len(files)} files as recorded", files=len(files), bytes=size)
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    listed = "\n".join(problems[:SHOWN])
    return outcome(False, f"{problems[0]}{more}; {REPAIR}", damaged=len(problems), first=listed)
