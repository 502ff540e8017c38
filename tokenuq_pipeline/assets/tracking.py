"""What a child process is told about tracking: the trackers of its study, and the tags of its runs."""

import importlib.metadata
from collections.abc import Mapping
from urllib.parse import urlsplit

import dagster as dg

from tokenuq_ml.config.load import Config
from tokenuq_ml.config.trackers import TRACKERS
from tokenuq_ml.stages.request import StageRequest
from tokenuq_ml.tracking.request import RUN, TrackedRun, TrackingRequest
from tokenuq_pipeline.assets.asset import StageAsset
from tokenuq_pipeline.runtime.bucket_store import BucketStore
from tokenuq_pipeline.runtime.git import git_state
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import TRACKING

TRACKED = {"baseline_teacher", "candidate_teacher", "ensemble_teacher", "student", "evaluation", "reference_evaluation"}
"""Stages of a study that report to trackers. So does `models`, of a model that is trained from scratch."""


def trackers_of_model(config: Config, model: str) -> tuple[str, ...]:
    """Return the trackers of a model that is trained from scratch: those of all studies of it."""
    named = {name for study in config.studies.values() if study.model == model for name in study.report_to}
    return tuple(name for name in TRACKERS if name in named)


def has_tracking_folder(store: Store) -> bool:
    """Return whether trackers can write files into the store: a folder that mirrors a bucket is not kept."""
    return not isinstance(store, BucketStore)


def tracking_request(
    store: Store,
    report_to: tuple[str, ...],
    wanted: Mapping[str, StageAsset],
    request: StageRequest,
    read: Mapping[str, Mapping[str, str | None]],
    run_id: str,
) -> TrackingRequest | None:
    """Return what a child is told; None if it reports to no tracker.

    Args:
        store: the store.
        report_to: names of trackers.
        wanted: the assets that the child makes, by stage.
        request: what else it is told.
        read: stage -> asset -> data version that the stage reads.
        run_id: Dagster's run.
    """
    pretrains = request.entrypoint == "pretrain_model"
    tracked = {stage: asset for stage, asset in wanted.items() if pretrains or stage in TRACKED}
    if not report_to or not tracked:
        return None
    return TrackingRequest(
        report_to=report_to,
        project=request.study or "models",
        folder=str(store.path(TRACKING)) if has_tracking_folder(store) else None,
        tags={stage: _tags(asset, read[stage], run_id) for stage, asset in tracked.items()},
        evaluated=_evaluated(store, wanted),
    )


def _tags(asset: StageAsset, read: Mapping[str, str | None], run_id: str) -> dict[str, str]:
    """Return tag -> value: what is made, by which code, from what."""
    own = {"study": asset.study, "ablation": asset.ablation, "asset": asset.name, "stage": asset.stage}
    versions = {f"data_version.{name}": version for name, version in read.items()}
    origin = {
        "code_version": asset.code_version,
        "spec_hash": asset.code_version.partition("-")[2],
        "version": importlib.metadata.version("tokenuq"),
        "dagster_run": run_id,
        **{name: str(value) for name, value in git_state().items()},
    }
    return {name: value for name, value in {**own, **origin, **versions}.items() if value is not None}


def _evaluated(store: Store, wanted: Mapping[str, StageAsset]) -> TrackedRun | None:
    """Return the run of the training that the child evaluates; None if the child trains it, or it has none."""
    if "evaluation" in wanted and "student" not in wanted:
        return _run_of(store, f"{wanted['evaluation'].study}/{wanted['evaluation'].ablation}/student")
    if "reference_evaluation" in wanted:
        return _run_of(store, f"{wanted['reference_evaluation'].study}/baseline_teacher")
    return None


def _run_of(store: Store, trained: str) -> TrackedRun | None:
    """Return the run of a training, as its manifest has it; of a teacher that was chosen, that of the candidate."""
    manifest: Manifest | None = store.read_manifest(trained)
    if manifest is None:
        return None
    figures = manifest.metrics
    if RUN in figures:
        name = trained.partition("/")[2]
        return TrackedRun(id=str(figures[RUN]), name=name, step=int(figures.get("steps") or 0))
    if candidate := figures.get("candidate"):
        return _run_of(store, f"{trained.partition('/')[0]}/{candidate}/candidate_teacher")
    return None


def shown_run(place: str) -> dg.MetadataValue | str:
    """Return where a tracker has a run, as the UI shows it: a link, a folder or a sentence."""
    if urlsplit(place).scheme in ("http", "https"):
        return dg.MetadataValue.url(place)
    return dg.MetadataValue.path(place) if place.startswith("/") else place


def is_run(name: str) -> bool:
    """Return whether a figure says where a tracker has a run."""
    return name.removesuffix("_run") in TRACKERS
