"""Two sensors: `data_files` starts a rerun when a study's files have changed, `next_wave` carries every rerun on.

Off until switched on in the UI or by `$TOKENUQ_AUTOMATE`. Neither knows what is stale (`staleness.py`).
"""

import json
from collections.abc import Iterator

import dagster as dg

from tokenuq_ml.data.sources.fingerprint import problem, signature
from tokenuq_pipeline.automation.reruns import CONSOLE_CONFIG, RERUN_TAG, WAVE_TAG, Reruns, rerun_of
from tokenuq_pipeline.automation.staleness import Key
from tokenuq_pipeline.runtime.data_files import (
    built_from_version,
    current_version,
    observation,
    observed_version,
    watched,
)
from tokenuq_pipeline.runtime.instance import close_dead_runs

FILES_INTERVAL_S, WAVE_INTERVAL_S = 30, 10
MAX_WAVES = 20


def build_sensors(reruns: Reruns, jobs: list, running: bool) -> list[dg.SensorDefinition]:
    """Both, for all enabled studies; `jobs` are what they may ask for."""
    if not reruns.studies:
        return []
    status = dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
    common = {"jobs": jobs, "default_status": status}
    return [
        dg.SensorDefinition(
            name="data_files",
            evaluation_fn=lambda context: data_files_tick(context, reruns),
            minimum_interval_seconds=FILES_INTERVAL_S,
            description="Asks for a rerun when the files of a study's dataset are new or changed, once they are whole: "
            "unchanged between two ticks, and ending as their format must. Never twice for the same content.",
            **common,
        ),
        dg.SensorDefinition(
            name="next_wave",
            evaluation_fn=lambda context: next_wave_tick(context, reruns),
            minimum_interval_seconds=WAVE_INTERVAL_S,
            description="Carries reruns of schedules and of data_files on: when a run has succeeded, asks for what is "
            "stale then. Also ends the record of runs whose process was killed.",
            **common,
        ),
    ]


def data_files_tick(context: dg.SensorEvaluationContext, reruns: Reruns) -> dg.SensorResult:
    """One look at every watched path.

    The cursor holds of each dataset the signature last seen, the content last asked for, and how often was asked.
    """
    cursor = json.loads(context.cursor or "{}")
    requests, events, waits = [], [], []
    for dataset, path in watched(reruns.config).items():
        studies = _studies_of(reruns, dataset)
        if not studies:
            continue
        known = cursor.get(dataset)
        if known is None:
            # What was there before the sensor is what the study was last made from, if it was made at all.
            known = {"signature": None, "version": observed_version(context.instance, dataset), "asked": 0}
        try:
            now, whole = signature(path), problem(path)
        except OSError as error:
            now, whole = None, str(error)
        if now != known["signature"]:
            waits.append(f"{dataset}: waits until its files stand still")
            cursor[dataset] = {**known, "signature": now}
            continue
        cursor[dataset] = known
        if whole is not None:
            waits.append(f"{dataset}: {whole}")
            continue
        version = current_version(path, reruns.store)
        if version is None or version == known["version"]:
            continue
        if busy := next(filter(None, (reruns.run_under_way(context.instance, study) for study in studies)), None):
            waits.append(f"{dataset}: waits for run {busy[:8]}")
            continue
        if built_from_version(context.instance, dataset) == version:
            # By a person's run or the schedule's, meanwhile.
            cursor[dataset] = {**known, "version": version}
            continue
        asked = known["asked"] + 1
        cursor[dataset] = {**known, "version": version, "asked": asked}
        events.append(observation(dataset, path, version))
        requests += _requests(studies, dataset, f"{dataset}-{version}-{asked}")
    skip = None if requests else dg.SkipReason("; ".join(waits) or "no data file has changed")
    return dg.SensorResult(run_requests=requests, skip_reason=skip, asset_events=events, cursor=json.dumps(cursor))


def _studies_of(reruns: Reruns, dataset: str) -> list[str]:
    config = reruns.config
    return [name for name in reruns.studies if dataset in config.datasets_of(config.studies[name])]


def _requests(studies: list[str], dataset: str, run_key: str) -> Iterator[dg.RunRequest]:
    """The dataset anew, by the first study's job; the others' reruns begin from there, in `next_wave`."""
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
    """For each study: where its last rerun's run has succeeded and was not followed yet, the next one.

    The cursor holds of each study the run that was followed last.
    """
    close_dead_runs(context.instance)
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
        if busy := reruns.run_under_way(context.instance, study):
            said.append(f"{study}: waits for run {busy[:8]}")
            continue
        cursor[study] = run.run_id
        number, wave = int(run.tags[WAVE_TAG]) + 1, reruns.find(context, study)
        if wave is None:
            said.append(f"{study}: all is fresh after {number - 1} waves")
        elif number > MAX_WAVES:
            said.append(f"{study}: still stale after {MAX_WAVES} waves; its rerun ends here")
        else:
            requests.append(reruns.request(study, wave, run.tags[RERUN_TAG], number, f"{study}-after-{run.run_id}"))
    skip = None if requests else dg.SkipReason("; ".join(said) or "no rerun is under way")
    return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=json.dumps(cursor))


def _last_run(instance: dg.DagsterInstance, study: str) -> dg.DagsterRun | None:
    """The last run of a rerun of the study: its own, or of a dataset that it shares with others."""
    runs = instance.get_runs(dg.RunsFilter(tags=rerun_of(study)), limit=1)
    return runs[0] if runs else None
