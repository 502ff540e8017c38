"""Reruns that nobody watches: the run requests of schedules and sensors, one wave after the other.

A rerun begins with a request that bears `RERUN_TAG`; when its run has succeeded, the sensor `next_wave` asks for
what is stale then, until nothing is. Knows what a request looks like; what is stale is `staleness.py`'s to say.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from tokenuq_ml.config.load import Config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.automation.staleness import Wave, find_wave, study_keys
from tokenuq_pipeline.runtime.data_files import observe
from tokenuq_pipeline.runtime.store import Store

RERUN_TAG, WAVE_TAG = "tokenuq/rerun", "tokenuq/wave"
"""What asked for the rerun, and the number of its run within it."""
AUTOMATE_VARIABLE = "TOKENUQ_AUTOMATE"
CONSOLE_CONFIG = {"loggers": {"console": {"config": {}}}}


def rerun_of(study: str) -> dict[str, str]:
    """The tag by which a run is found as part of a rerun of the study."""
    return {f"tokenuq.rerun/{study}": "true"}


def starts_running(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether schedules and sensors run without having been switched on in the UI.

    Raises:
        InputError: the variable is neither 0 nor 1.
    """
    value = environment.get(AUTOMATE_VARIABLE, "0")
    if value not in ("0", "1"):
        raise InputError(f"{AUTOMATE_VARIABLE}: must be 0 or 1, is {value!r}")
    return value == "1"


@dataclass(frozen=True)
class Reruns:
    """Makes the requests of one configuration and store."""

    config: Config
    store: Store

    @property
    def studies(self) -> list[str]:
        """Those that are enabled."""
        return [name for name, study in self.config.studies.items() if study.enabled]

    def first_wave(self, context, study: str, cause: str) -> dg.RunRequest | dg.SkipReason:
        """What a tick asks for: the study's first wave, or nothing and why.

        Args:
            context: of a schedule's or sensor's tick.
        """
        if busy := self.run_under_way(context.instance, study):
            return dg.SkipReason(
                f"{study}: run {busy[:8]} is under way; what is stale after it waits for the next tick"
            )
        datasets = self.config.datasets_of(self.config.studies[study])
        observe(self.config, context.instance, self.store, datasets)
        wave = self.find(context, study)
        if wave is None:
            return dg.SkipReason(f"{study}: nothing is stale")
        return self.request(study, wave, cause, number=1)

    def find(self, context, study: str) -> Wave | None:
        """The study's next wave."""
        graph = context.repository_def.asset_graph
        return find_wave(graph, study_keys(graph, study), context.instance, self.store)

    @staticmethod
    def request(study: str, wave: Wave, cause: str, number: int, run_key: str | None = None) -> dg.RunRequest:
        """A run of the study's job with what the wave holds."""
        return dg.RunRequest(
            run_key=run_key,
            job_name=study,
            asset_selection=sorted(wave.assets),
            asset_check_keys=sorted(wave.checks),
            run_config=CONSOLE_CONFIG,
            tags={"study": study, RERUN_TAG: cause, WAVE_TAG: str(number), **rerun_of(study)},
        )

    @staticmethod
    def run_under_way(instance: dg.DagsterInstance, study: str) -> str | None:
        """The id of a run of the study that has not ended."""
        runs = instance.get_runs(dg.RunsFilter(tags={"study": study}, statuses=NOT_FINISHED_STATUSES), limit=1)
        return runs[0].run_id if runs else None
