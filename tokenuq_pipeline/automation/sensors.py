"""Two sensors: `data_files` starts a rerun when a study's files have changed, `next_wave` continues every rerun.

Sensors are off until they are switched on in the UI or by `$TOKENUQ_AUTOMATE`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import dagster as dg

from tokenuq_ml.data.sources.fingerprint import signature, why_incomplete
from tokenuq_ml.data.sources.locate import find_files
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.automation.reruns import RERUN_TAG, WAVE_TAG, Reruns, rerun_of
from tokenuq_pipeline.automation.staleness import MAX_WAVES, Key
from tokenuq_pipeline.runtime.console import CONSOLE_CONFIG
from tokenuq_pipeline.runtime.data_files import (
    built_from_version,
    current_version,
    observation,
    observed_version,
    watched,
)
from tokenuq_pipeline.runtime.instance import close_dead_runs

FILES_INTERVAL_S, WAVE_INTERVAL_S = 30, 10


def build_sensors(reruns: Reruns, jobs: list, running: bool) -> list[dg.SensorDefinition]:
    """Return both sensors for all enabled studies; none if no study is enabled.

    Args:
        reruns: builds the run requests.
        jobs: the jobs of the enabled studies.
        running: whether the sensors are on by default.
    """
    if not reruns.studies:
        return []
    status = dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
    common = {"jobs": jobs, "default_status": status}
    return [
        dg.SensorDefinition(
            name="data_files",
            evaluation_fn=lambda context: data_files_tick(context, reruns),
            minimum_interval_seconds=FILES_INTERVAL_S,
            description="Requests a rerun when the files of a study's dataset are new or changed, and complete: "
            "unchanged between two ticks, with an end that their format allows. Never twice for the same content.",
            **common,
        ),
        dg.SensorDefinition(
            name="next_wave",
            evaluation_fn=lambda context: next_wave_tick(context, reruns),
            minimum_interval_seconds=WAVE_INTERVAL_S,
            description="Continues reruns of schedules and of data_files: when a run has succeeded, requests what is "
            "stale then. Also marks runs as ended whose process was killed.",
            **common,
        ),
    ]


@dataclass
class _FilesTick:
    """What a tick of `data_files` collects."""

    cursor: dict[str, dict]
    """Dataset -> the signature last seen, the version last requested, and the number of requests so far."""
    requests: list[dg.RunRequest] = field(default_factory=list)
    events: list[dg.AssetObservation] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


def data_files_tick(context: dg.SensorEvaluationContext, reruns: Reruns) -> dg.SensorResult:
    """Look once at the files of every dataset, and request a rerun for those that have changed."""
    tick = _FilesTick(json.loads(context.cursor or "{}"))
    for dataset in watched(reruns.config):
        studies = _studies_of(reruns, dataset)
        if studies:
            _look_at(dataset, studies, context.instance, reruns, tick)
    skip = None if tick.requests else dg.SkipReason("; ".join(tick.waits) or "no data file has changed")
    return dg.SensorResult(
        run_requests=tick.requests, skip_reason=skip, asset_events=tick.events, cursor=json.dumps(tick.cursor)
    )


def _look_at(dataset: str, studies: list[str], instance: dg.DagsterInstance, reruns: Reruns, tick: _FilesTick) -> None:
    spec, known = reruns.config.datasets[dataset], tick.cursor.get(dataset)
    if known is None:
        # Files that existed before the sensor are what the study was last built from, if it was built at all.
        known = {"signature": None, "version": observed_version(instance, spec), "asked": 0}
    try:
        data = find_files(spec)
        now, incomplete = signature(data.root, data.files), why_incomplete(data.files)
        if data.being_written:
            incomplete = f"{data.being_written} is still being written"
    except (OSError, InputError) as error:
        now, incomplete = None, str(error)
    if now != known["signature"]:
        tick.waits.append(f"{dataset}: waits until its files no longer change")
        tick.cursor[dataset] = {**known, "signature": now}
        return
    tick.cursor[dataset] = known
    if incomplete is not None:
        tick.waits.append(f"{dataset}: {incomplete}")
        return
    version = current_version(spec, reruns.store)
    if version is None or version == known["version"]:
        return
    if busy := next(filter(None, (reruns.run_in_progress(instance, study) for study in studies)), None):
        tick.waits.append(f"{dataset}: waits for run {busy[:8]}")
        return
    if built_from_version(instance, spec) == version:
        # Another run, of a person or a schedule, has read the change meanwhile.
        tick.cursor[dataset] = {**known, "version": version}
        return
    asked = known["asked"] + 1
    tick.cursor[dataset] = {**known, "version": version, "asked": asked}
    tick.events.append(observation(spec, version))
    tick.requests += _requests(studies, dataset, f"{dataset}-{version}-{asked}")


def _studies_of(reruns: Reruns, dataset: str) -> list[str]:
    config = reruns.config
    return [name for name in reruns.studies if dataset in config.datasets_of(config.studies[name])]


def _requests(studies: list[str], dataset: str, run_key: str) -> Iterator[dg.RunRequest]:
    """Rebuild the dataset by the first study's job; `next_wave` continues the reruns of all its studies from there."""
    yield dg.RunRequest(
        run_key=run_key,
        job_name=studies[0],
        asset_selection=[Key(["datasets", dataset])],
        run_config=CONSOLE_CONFIG,
        tags={
            "study": studies[0],
            RERUN_TAG: f"data file of {dataset}",
            WAVE_TAG: "1",
            **{tag: value for study in studies for tag, value in rerun_of(study).items()},
        },
    )


def next_wave_tick(context: dg.SensorEvaluationContext, reruns: Reruns) -> dg.SensorResult:
    """Request the next wave of each study whose last rerun's run has succeeded and was not followed yet.

    The cursor holds for each study the run that was followed last.
    """
    close_dead_runs(context.instance, reruns.store.home)
    cursor = json.loads(context.cursor or "{}")
    requests, said = [], []
    for study in reruns.studies:
        run = _last_run(context.instance, study)
        if run is None or cursor.get(study) == run.run_id or not run.is_finished:
            continue
        if not run.is_success:
            cursor[study] = run.run_id
            said.append(f"{study}: run {run.run_id[:8]} did not succeed; its rerun ends here")
            continue
        if busy := reruns.run_in_progress(context.instance, study):
            said.append(f"{study}: waits for run {busy[:8]}")
            continue
        cursor[study] = run.run_id
        number, wave = int(run.tags[WAVE_TAG]) + 1, reruns.find(context, study)
        if wave is None:
            said.append(f"{study}: everything is fresh after {number - 1} {'wave' if number == 2 else 'waves'}")
        elif number > MAX_WAVES:
            said.append(f"{study}: still stale after {MAX_WAVES} waves; its rerun ends here")
        else:
            requests.append(reruns.request(study, wave, run.tags[RERUN_TAG], number, f"{study}-after-{run.run_id}"))
    skip = None if requests else dg.SkipReason("; ".join(said) or "no rerun is in progress")
    return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=json.dumps(cursor))


def _last_run(instance: dg.DagsterInstance, study: str) -> dg.DagsterRun | None:
    """Return the last run of a rerun of the study: its own, or the run of a dataset that it shares with others."""
    runs = instance.get_runs(dg.RunsFilter(tags=rerun_of(study)), limit=1)
    return runs[0] if runs else None
