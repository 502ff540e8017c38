"""Run requests of schedules and sensors, wave by wave.

The first run of a rerun has the tag `RERUN_TAG`. When a run with it has succeeded, the sensor `next_wave` requests what
is stale then, until nothing is. What is stale is decided in `staleness.py`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg

from tokenuq_ml.config.load import Config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.automation.adoption import adopt
from tokenuq_pipeline.automation.staleness import Records, Wave, find_wave, study_keys
from tokenuq_pipeline.runtime.console import CONSOLE_CONFIG
from tokenuq_pipeline.runtime.dagster_internals import NOT_FINISHED_STATUSES
from tokenuq_pipeline.runtime.data_files import observe
from tokenuq_pipeline.runtime.instance import ONLY_STALE_TAG
from tokenuq_pipeline.runtime.store import Store

RERUN_TAG, WAVE_TAG = "tokenuq/rerun", "tokenuq/wave"
"""What requested the rerun, and the number of the run within it, from 1."""
AUTOMATE_VARIABLE = "TOKENUQ_AUTOMATE"


def rerun_of(study: str) -> dict[str, str]:
    """Return the tag by which runs of the study's reruns are found."""
    return {f"tokenuq.rerun/{study}": "true"}


def starts_running(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether schedules and sensors are on without being switched on in the UI.

    Raises:
        InputError: `TOKENUQ_AUTOMATE` is neither 0 nor 1.
    """
    value = environment.get(AUTOMATE_VARIABLE, "0")
    if value not in ("0", "1"):
        raise InputError(f"{AUTOMATE_VARIABLE}: must be 0 or 1, is {value!r}")
    return value == "1"


@dataclass(frozen=True)
class Reruns:
    """Builds run requests for one configuration and store."""

    config: Config
    store: Store

    @property
    def studies(self) -> list[str]:
        """Return the enabled studies."""
        return [name for name, study in self.config.studies.items() if study.enabled]

    @property
    def comparisons(self) -> list[str]:
        """Return the comparisons whose studies are all enabled."""
        enabled = set(self.studies)
        return [name for name, one in self.config.comparisons.items() if set(one.studies) <= enabled]

    def first_wave(self, context, study: str, cause: str) -> dg.RunRequest | dg.SkipReason:
        """Return the request that a tick makes: the study's first wave, or the reason why there is none.

        Args:
            context: of the tick of a schedule or sensor.
            study: name of the study.
            cause: what requests the rerun; the value of its tag.
        """
        if busy := self.run_in_progress(context.instance, study):
            return dg.SkipReason(
                f"{study}: run {busy[:8]} is in progress; what is stale after it waits for the next tick"
            )
        datasets = self.config.datasets_of(self.config.studies[study])
        observe(self.config, context.instance, self.store, datasets)
        wave = self.find(context, study)
        if wave is None:
            return dg.SkipReason(f"{study}: nothing is stale")
        return self.request(study, wave, cause, number=1)

    def find(self, context, study: str) -> Wave | None:
        """Return the study's next wave; None if nothing is stale."""
        records = Records.of(context.repository_def.asset_graph, self.config, context.instance, self.store)
        keys = study_keys(records.assets, study)
        # A tick has a minute. Stages compare what they read with its hashes, and checks are left to the wave.
        adopt(records, keys, verify=False)
        return find_wave(records, keys)

    @staticmethod
    def request(study: str, wave: Wave, cause: str, number: int, run_key: str | None = None) -> dg.RunRequest:
        """Return the request for a run of the study's job that makes and checks what is in the wave."""
        return dg.RunRequest(
            run_key=run_key,
            job_name=study,
            asset_selection=sorted(wave.assets),
            asset_check_keys=sorted(wave.checks),
            run_config=CONSOLE_CONFIG,
            tags={
                "study": study,
                RERUN_TAG: cause,
                WAVE_TAG: str(number),
                ONLY_STALE_TAG: "true",
                **rerun_of(study),
            },
        )

    @staticmethod
    def run_in_progress(instance: dg.DagsterInstance, study: str) -> str | None:
        """Return the id of a run of the study that has not ended."""
        runs = instance.get_runs(dg.RunsFilter(tags={"study": study}, statuses=NOT_FINISHED_STATUSES), limit=1)
        return runs[0].run_id if runs else None
