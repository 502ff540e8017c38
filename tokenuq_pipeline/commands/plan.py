"""`tokenuq plan`: estimate what a study would compute, and check that its model and data are available."""

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from functools import cache

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.commands import plan_cluster
from tokenuq_pipeline.commands.before_run import tracking_findings
from tokenuq_pipeline.commands.common import (
    STUDY_HELP,
    configuration,
    known_comparison,
    known_studies,
    project,
)
from tokenuq_pipeline.commands.disk_space import disk_needs
from tokenuq_pipeline.commands.json_output import add_json, print_json
from tokenuq_pipeline.commands.plan_machine import card_of, measure_machine
from tokenuq_pipeline.commands.plan_rows import require_undamaged, stage_rows, study_groups
from tokenuq_pipeline.commands.plan_text import FRESH, Plan, as_text, assumptions, comparison_as_text, grid_as_text
from tokenuq_pipeline.runtime.paths import dagster_home

STATES = {"waiting": "may follow", "unchecked": FRESH, "damaged": FRESH}
"""States of `tokenuq status` that a plan names otherwise: an asset that may follow is counted. One is not
whose check is pending, because only the check runs, nor one that has a file too many."""
TRAININGS = ("student", "baseline_teacher", "candidate_teacher", "ensemble_teacher")
"""Ends of the names of assets that are trainings."""


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plan",
        help="estimate a study's tokens, FLOPs, time, disk and memory",
        description="Estimates what each stage of the study would take on this machine, and checks that its models and "
        "datasets are available. Measures the machine's rate of matrix products and computes nothing else. Downloads "
        "no weights: it sends the hub one HEAD request per source. With --device it estimates for a card that need not "
        "be there, by its data sheet. With --cluster it estimates all stages on a cluster that need not exist, and "
        "measures and looks up nothing.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--study", metavar="STUDY", help=f"{STUDY_HELP}; may be left out with --cluster")
    which.add_argument(
        "--comparison", metavar="NAME", help="a comparison in comparisons.yaml: what it needs of all its studies"
    )
    parser.add_argument(
        "--device", metavar="CARD", help="plan for a card by its data sheet: A100, H100, H200, L4, 4090 and others"
    )
    plan_cluster.add_arguments(parser)
    add_json(parser, "print JSON: an object per study, in a list for a grid or a comparison", has_format=True)
    parser.set_defaults(function=plan_command)


def plan_command(options: argparse.Namespace) -> int:
    """Run `tokenuq plan`."""
    if options.cluster is not None:
        return plan_cluster.cluster_command(options)
    plan_cluster.require_no_cluster_options(options)
    from tokenuq_pipeline.assets.shown_studies import config_of
    from tokenuq_pipeline.commands.status import needed, status_rows
    from tokenuq_pipeline.runtime.store_layout import COMPARISONS

    measure = measure_machine if options.device is None else card_of(options.device)
    dagster_home()
    config = configuration()
    if options.comparison is not None:
        comparison = known_comparison(config, options.comparison)
        studies, asked, comparisons = comparison.studies, [f"{COMPARISONS}/{comparison.name}"], [comparison.name]
        names = set(needed(config, asked[0]))
    else:
        studies = known_studies(config, options.study)
        asked, comparisons, names = list(studies), [], None
    # Of these studies only: to go through the ablations of all takes seconds.
    part = config_of(config, studies, comparisons=comparisons)
    with project(*studies, config=part, comparisons=comparisons) as here:
        rows = status_rows(here.defs, here.config, asked, here.instance, here.store)
        states = {row["asset"]: STATES.get(row["state"], row["state"]) for row in rows}
        plans = make_plans(here.config, studies, states, here.store, names, measure)
    several = options.study is None or options.study in config.grids
    if options.format == "json":
        as_json = [vars(plan) for plan in plans]
        print_json(as_json if several else as_json[0])
        return 0
    needs = disk_needs([row for plan in plans for row in plan.planned], here.store)
    if options.comparison is not None:
        text = comparison_as_text(options.comparison, plans, needs)
    else:
        text = grid_as_text(options.study, plans, needs) if several else as_text(plans[0], needs)
    print(escaped(redacted(text)))
    return 0


def make_plans(
    config,
    studies: Sequence[str],
    states: dict[str, str],
    store,
    names: Collection[str] | None = None,
    measure=None,
) -> list[Plan]:
    """Return the plans of studies; an asset that several of them need counts in the first one.

    Args:
        config: the configuration.
        studies: their names.
        states: asset -> state, of assets that are not fresh.
        store: as in `make_plan`.
        names: the assets that are asked for; others are left out. None: all.
        measure: as in `make_plan`.

    Raises:
        InputError: the machine's rate could not be measured.
    """
    from tokenuq_pipeline.assets.shown_studies import config_of

    measure = cache(measure or measure_machine)
    plans, counted = list[Plan](), set[str]()
    for study in studies:
        # Of this study only: to go through the assets of a large grid takes seconds each time.
        part = config_of(config, [study])
        needed = {asset.name for group in study_groups(part, study) for asset in group}
        own = {name: state for name, state in states.items() if name in needed - counted}
        plan = make_plan(part, study, own, store, measure)
        if names is not None:
            plan.stages = [row for row in plan.stages if row["asset"] in names]
            plan.totals = _totals(plan.stages)
        plans.append(plan)
        counted |= needed
    return plans


def make_plan(config, study: str, states: dict[str, str], store, measure=None) -> Plan:
    """Return the plan of a study.

    Args:
        config: the configuration.
        study: name of the study.
        states: asset -> state, of assets that are not fresh.
        store: where existing models and tables are looked up.
        measure: `measure(architecture, training, tables)` returns the `Machine`; default: `measure_machine`.

    Raises:
        InputError: the machine's rate could not be measured.
    """
    spec = config.studies[study]
    sources, sizes = _sources(config, spec, store)
    known, machine = sizes[spec.model], None
    if states and known is not None:
        machine = (measure or measure_machine)(known.architecture, spec.precision.training, spec.precision.tables)
    planner, stages = stage_rows(config, study, states, store, sizes, machine)
    return Plan(
        study,
        spec.model,
        known.architecture.parameters if known else None,
        stages,
        machine and dataclasses.asdict(machine),
        [vars(source) for source in sources],
        assumptions(planner, sizes, spec) if states else [],
        _totals(stages),
        _micro_batch(planner, stages),
        [*_position_findings(spec, known), *_template_findings(config, spec, store)]
        if f"{study}/tokenized_dataset" in states
        else [],
        tracking_findings(spec, store),
    )


def _micro_batch(planner, stages: list[dict]) -> dict | None:
    """Return the largest micro-batch that fits, if something is trained and the device's memory is known."""
    from tokenuq_ml.costs.budgets import rank_of
    from tokenuq_ml.costs.micro_batch import largest_micro_batch

    trains = any(row["asset"].endswith(TRAININGS) for row in stages if row["state"] != FRESH)
    if not trains:
        return None
    ranks = {rank_of(planner.study, planner.config.ablations[name]) for name in planner.study.ablations}
    found = largest_micro_batch(planner.memory, max(ranks | {planner.study.train.lora.rank}))
    return found and dataclasses.asdict(found)


def _sources(config, spec, store) -> tuple[list, dict]:
    """Return the availability of the study's models and datasets, and the sizes of each model (None: not known)."""
    from tokenuq_ml.costs.sources import dataset_source, model_source
    from tokenuq_pipeline.runtime.bucket_store import model_folder
    from tokenuq_pipeline.runtime.repair import require_undamaged

    for name in config.models_of(spec):
        # The next run makes a model with a damaged manifest again.
        if store.is_complete(f"models/{name}"):
            require_undamaged(store, f"models/{name}", not_read=".safetensors")
    models = {
        name: model_source(config.models[name], model_folder(store, name), datasets=config.datasets)
        for name in config.models_of(spec)
    }
    datasets = [
        dataset_source(config.datasets[name], store.is_complete(f"datasets/{name}"))
        for name in config.datasets_of(spec)
    ]
    sizes = {name: found for name, (_, found) in models.items()}
    return [*(source for source, _ in models.values()), *datasets], sizes


def _template_findings(config, spec, store) -> list[str]:
    """Return what the chat template makes of the study's rows, as far as tokenizer and rows are here."""
    from tokenuq_ml.costs.template_check import template_findings, tokenizer_folder
    from tokenuq_pipeline.runtime.bucket_store import model_folder

    model = config.models[spec.model]
    folder = tokenizer_folder(model, model_folder(store, spec.model))
    if folder is None:
        return []
    examples = {name: _first_examples(store, name) for name in (spec.dataset, *spec.ood)}
    asked = {name: _first_examples(store, name) for name in spec.evaluation.prompted}
    return list(template_findings(spec, model, folder, examples, asked))


def _first_examples(store, dataset: str) -> list:
    """Return the first examples of a dataset; none if it is not made."""
    from tokenuq_ml.costs.template_check import CHECKED_ROWS
    from tokenuq_ml.data.examples import Example
    from tokenuq_ml.tables.parquet import stream_table
    from tokenuq_ml.tables.schemas import TABLES
    from tokenuq_pipeline.runtime.store_layout import table_path

    if not store.is_complete(f"datasets/{dataset}"):
        return []
    require_undamaged(store, "examples", dataset=dataset)
    table = store.path(table_path("examples", dataset=dataset))
    first = next(stream_table(table, list(TABLES["examples"].columns), CHECKED_ROWS), None)
    return [Example.from_row(row) for row in first.to_pylist()] if first is not None else []


def _position_findings(spec, sizes) -> list[str]:
    """Return that the study's examples may be longer than its model's positions, if they may."""
    limit = sizes.positions if sizes else None
    if limit is None or spec.max_length <= limit:
        return []
    return [
        f"{spec.model}: has {limit:,} positions, and max_length of {spec.name} is {spec.max_length:,}: longer examples "
        f"are refused when they are tokenised; set max_length: {limit}"
    ]


def _totals(stages: list[dict]) -> dict:
    """Return the sums over the rows; None if a model's sizes are not known."""
    planned = [row for row in stages if row["state"] != FRESH]
    known = all(row["flop"] is not None for row in planned)
    largest = max(planned, key=lambda row: sum(row["memory"].values()), default=None)
    return {
        "stages": len(planned),
        FRESH: len(stages) - len(planned),
        "tokens": sum(row["tokens"] for row in planned),
        "flop": sum(row["flop"] for row in planned) if known else None,
        "seconds": sum(row["seconds"] for row in planned) if known else None,
        "disk": sum(sum(row["disk"].values()) for row in planned),
        "passing_disk": max((sum(row["passing_disk"].values()) for row in planned), default=0),
        "largest": largest and largest["asset"],
        "memory": largest["memory"] if largest else {},
    }
