"""Jobs and schedules of exported models: `export__<name>` makes the export alone, of what its study has.

A schedule exports again if the model, or the export's entry, has changed. It does not train: the study's own schedule
does.
"""

import dagster as dg

from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.integrity_checks import intact_key
from tokenuq_pipeline.automation.adoption import adopt
from tokenuq_pipeline.automation.staleness import Key, Records, ancestors, staleness
from tokenuq_pipeline.runtime.console import CONSOLE_CONFIG
from tokenuq_pipeline.runtime.dagster_internals import NOT_FINISHED_STATUSES, is_valid_cron_schedule
from tokenuq_pipeline.runtime.instance import ONLY_STALE_TAG
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import EXPORTS


def export_key(export: str) -> Key:
    """Return the key of an export."""
    return Key([EXPORTS, export])


def export_job(export: str) -> str:
    """Return the name of an export's job, which no study can have."""
    return f"{EXPORTS}__{export}"


def build_export_jobs(config: Config) -> list:
    """Return one job per export, which makes the export only, with its check."""
    return [
        dg.define_asset_job(
            export_job(name),
            selection=dg.AssetSelection.assets(export_key(name))
            - dg.AssetSelection.checks(intact_key(export_key(name))),
            description=f"Exports {spec.ablation} of {spec.study} as {spec.kind}; the study's own job trains it.",
            tags={"export": name},
            config=CONSOLE_CONFIG,
        )
        for name, spec in config.exports.items()
    ]


def build_export_schedules(config: Config, store: Store, running: bool) -> list[dg.ScheduleDefinition]:
    """Return one schedule per export that names when.

    Args:
        config: with the exports.
        store: the store.
        running: whether schedules are on by default.

    Raises:
        InputError: an entry's `schedule` is not a cron expression.
    """
    return [_schedule(config, store, spec, running) for spec in config.exports.values() if spec.schedule is not None]


def _schedule(config: Config, store: Store, spec: ExportSpec, running: bool) -> dg.ScheduleDefinition:
    if spec.schedule is None or not is_valid_cron_schedule(spec.schedule):
        raise InputError(
            f"exports.yaml: {spec.name}.schedule: {spec.schedule!r} is not a cron expression; an example is "
            "'0 5 * * 1', Mondays at 5:00"
        )

    @dg.schedule(
        name=f"{export_job(spec.name)}__schedule",
        cron_schedule=spec.schedule,
        job_name=export_job(spec.name),
        default_status=dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
        description=f"Exports {spec.study}/{spec.ablation} again if it has changed.",
        tags={"export": spec.name},
    )
    def export_again(context: dg.ScheduleEvaluationContext):
        return _tick(context, config, store, spec.name)

    return export_again


def _tick(
    context: dg.ScheduleEvaluationContext, config: Config, store: Store, export: str
) -> dg.RunRequest | dg.SkipReason:
    """Return the run that a tick requests, or why there is none."""
    name, key = f"{EXPORTS}/{export}", export_key(export)
    busy = context.instance.get_runs(dg.RunsFilter(tags={"export": export}, statuses=NOT_FINISHED_STATUSES), limit=1)
    if busy:
        return dg.SkipReason(f"{name}: run {busy[0].run_id[:8]} is in progress")
    records = Records.of(context.repository_def.asset_graph, config, context.instance, store)
    keys = ancestors(records.parents, [key])
    adopt(records, keys, verify=False)
    stale = staleness(records, keys)
    if key not in stale.reasons:
        return dg.SkipReason(f"{name}: is up to date")
    waits = sorted(
        {one.to_user_string() for one in stale.reasons if one != key}
        | {check.asset_key.to_user_string() for check in stale.pending_checks if check.asset_key != key}
    )
    if waits:
        return dg.SkipReason(f"{name}: waits for {', '.join(waits[:3])}, which the job of its study makes or checks")
    return dg.RunRequest(
        asset_selection=[key], run_config=CONSOLE_CONFIG, tags={"export": export, ONLY_STALE_TAG: "true"}
    )
