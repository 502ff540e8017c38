"""Asset checks: what must be true of the tables before anything is built on them.

Each is a function of the published store alone, so that it can be run again at any time. A
blocking check that fails stops what is downstream; quality checks only warn.
"""

from collections.abc import Callable
from typing import NamedTuple

import dagster as dg
import polars as pl

from tokenuq_ml.config import Config
from tokenuq_ml.quantiles import count_selected
from tokenuq_ml.specs import AblationSpec
from tokenuq_pipeline.nodes import Node, dataset_node
from tokenuq_pipeline.resources import StoreResource
from tokenuq_pipeline.store import Store

BOUND_TOLERANCE = 1e-5
ALIVE_BALD = 1e-6
"""Nats. With dropout off BALD is 0 up to float32 rounding (1e-7 of entropies of some nats); with it on, 1e-4 and more."""


class Verdict(NamedTuple):
    """A check's outcome, its one sentence, and figures."""

    passed: bool
    said: str
    figures: dict = {}


def one_row_per_response_token(tokenized: pl.DataFrame, losses: pl.DataFrame) -> Verdict:
    """Every response token of every split once; no prompt or padding token."""
    expected = (
        tokenized.select("example_id", position=pl.int_ranges(0, pl.col("response_mask").list.len()).cast(pl.List(pl.Int32)),
                         response="response_mask")
        .explode("position", "response").filter("response").drop("response")
    )
    rows = losses.select("example_id", pl.col("position").cast(pl.Int32))
    repeated = len(rows) - rows.n_unique()
    missing = expected.join(rows, on=["example_id", "position"], how="anti")
    foreign = rows.join(expected, on=["example_id", "position"], how="anti")
    figures = {"response_tokens": len(expected), "rows": len(rows), "missing": len(missing), "foreign": len(foreign),
               "repeated": repeated}
    passed = not (len(missing) or len(foreign) or repeated)
    return Verdict(passed, f"{len(rows):,} rows for {len(expected):,} response tokens: {len(missing)} missing, "
                           f"{len(foreign)} that are no response token, {repeated} repeated", figures)


def no_question_in_two_splits(examples: pl.DataFrame) -> Verdict:
    """No user text, but for case and white space, in two splits or twice in one."""
    questions = examples.select(
        "split",
        question=pl.col("messages").list.eval(
            pl.element().filter(pl.element().struct.field("role") == "user").struct.field("content")).list.join("\n")
        .str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars())
    shared = questions.group_by("question").agg(splits=pl.col("split").n_unique()).filter(pl.col("splits") > 1)
    return Verdict(shared.is_empty(), f"{len(shared)} of {questions['question'].n_unique():,} questions in two splits",
                   {"questions": questions["question"].n_unique(), "in_two_splits": len(shared)})


def losses_finite(losses: pl.DataFrame) -> Verdict:
    """Every loss and entropy is a finite number, none below 0."""
    columns = ["loss", "entropy", "base_loss", "base_entropy"]
    bad = {name: int((~losses[name].is_finite() | (losses[name] < -BOUND_TOLERANCE)).fill_null(True).sum())
           for name in columns}
    return Verdict(not any(bad.values()), f"not finite or negative: {bad}", bad)


def uncertainty_bounds(uncertainty: pl.DataFrame) -> Verdict:
    """0 <= bald <= predictive_entropy, within 1e-5 nats."""
    bald, predictive = uncertainty["bald"], uncertainty["predictive_entropy"]
    within = (bald >= -BOUND_TOLERANCE) & (bald <= predictive + BOUND_TOLERANCE)
    bad = len(uncertainty) - int(within.fill_null(False).sum())
    return Verdict(bad == 0, f"{bad} of {len(uncertainty):,} rows out of 0 <= bald <= predictive_entropy", {"bad": bad})


def bald_alive(uncertainty: pl.DataFrame) -> Verdict:
    """Dropout was really on: the median token disagrees between samples."""
    median, largest = float(uncertainty["bald"].median()), float(uncertainty["bald"].max())
    return Verdict(largest > ALIVE_BALD, f"BALD: median {median:.2e}, largest {largest:.2e} nats; alive above "
                                         f"{ALIVE_BALD:.0e}", {"median": median, "max": largest})


def joins_one_to_one(losses: pl.DataFrame, uncertainty: pl.DataFrame) -> Verdict:
    """token_uncertainty has the very rows of token_losses."""
    keys = ["example_id", "position"]
    alone = len(losses.join(uncertainty, on=keys, how="anti")) + len(uncertainty.join(losses, on=keys, how="anti"))
    repeated = len(uncertainty) - uncertainty.select(keys).n_unique()
    return Verdict(not alone and not repeated, f"{alone} rows without a partner, {repeated} repeated",
                   {"without_partner": alone, "repeated": repeated})


def cached_teacher_matches_online(metrics: dict) -> Verdict:
    """KL from a fresh teacher forward to the cached states, on a sample, within bfloat16 rounding."""
    error, bound = metrics["online_check_max_error"], metrics["online_check_bound"]
    return Verdict(error <= bound, f"largest KL(online || cached) {error:.2e} nats a token; bound {bound:g}",
                   {"max_error": error, "bound": bound, "examples": metrics["online_check_examples"]})


def selected_share(selections: pl.DataFrame, ablation: AblationSpec) -> Verdict:
    """As many tokens were selected as the spec says: ceil(q N) of each step, or of the data set."""
    select = ablation.select
    steps = selections.group_by("step").agg(tokens=pl.len(), selected=pl.col("selected").sum()).sort("step")
    if select.by == "all":
        wrong = steps.filter(pl.col("tokens") != pl.col("selected"))
    elif select.scope == "batch":
        wanted = [count_selected(select.quantile, tokens) for tokens in steps["tokens"]]
        wrong = steps.filter(pl.col("selected") != pl.Series(wanted))
    else:
        tokens = selections.unique(["example_id", "position"])
        wanted = count_selected(select.quantile, len(tokens))
        wrong = steps.head(int(tokens["selected"].sum() != wanted))
    share = float(selections["selected"].mean())
    return Verdict(wrong.is_empty(), f"{share:.2%} of tokens selected over {len(steps)} steps; {len(wrong)} steps differ "
                                     "from the spec", {"share": share, "steps_that_differ": len(wrong)})


def _mean_loss(evaluations: pl.DataFrame, split: str) -> dict | None:
    rows = evaluations.filter((pl.col("metric") == "loss") & (pl.col("split") == split)).sort("dataset")
    return rows.row(0, named=True) if len(rows) else None


def quality(student: pl.DataFrame, reference: pl.DataFrame, split: str, who: str) -> Verdict:
    """The student's loss is not above the reference's interval."""
    ours, theirs = _mean_loss(student, split), _mean_loss(reference, split)
    if ours is None or theirs is None:
        return Verdict(True, f"no {split} examples")
    passed = ours["value"] <= theirs["ci_high"]
    return Verdict(passed, f"loss on {ours['dataset']} ({split}): student {ours['value']:.4f}, {who} "
                           f"{theirs['value']:.4f} [{theirs['ci_low']:.4f}, {theirs['ci_high']:.4f}]",
                   {"student": ours["value"], who: theirs["value"]})


def _check(node: Node, name: str, description: str, verdict: Callable[[Store], Verdict], *,
           blocking: bool, deps: tuple[Node, ...] = ()) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=node.key, name=name, description=description, blocking=blocking,
                    additional_deps=[dep.key for dep in deps])
    def check(store: StoreResource) -> dg.AssetCheckResult:
        outcome = verdict(store.store)
        return dg.AssetCheckResult(
            passed=outcome.passed, description=outcome.said, metadata=outcome.figures,
            severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN)

    return check


def all_checks(config: Config) -> list[dg.AssetChecksDefinition]:
    """The checks of every dataset, study and ablation."""
    checks = []
    for name in config.datasets:
        node = dataset_node(name)
        checks.append(_check(node, "no_question_in_two_splits", no_question_in_two_splits.__doc__,
                             lambda store, node=node: no_question_in_two_splits(store.read(node)), blocking=True))
    for study in config.studies.values():
        checks += _study_checks(study.name)
        for name in study.ablations:
            checks += _ablation_checks(study.name, config.ablations[name])
    return checks


def _study_checks(study: str) -> list[dg.AssetChecksDefinition]:
    tokens, losses = Node("tokenized_dataset", study), Node("token_losses", study)
    uncertainty, hidden = Node("token_uncertainty", study), Node("teacher_hidden", study)
    return [
        _check(losses, "one_row_per_response_token", one_row_per_response_token.__doc__,
               lambda s: one_row_per_response_token(s.read(tokens), s.read(losses)), blocking=True, deps=(tokens,)),
        _check(losses, "losses_finite", losses_finite.__doc__, lambda s: losses_finite(s.read(losses)), blocking=True),
        _check(uncertainty, "uncertainty_bounds", uncertainty_bounds.__doc__,
               lambda s: uncertainty_bounds(s.read(uncertainty)), blocking=True),
        _check(uncertainty, "bald_alive", bald_alive.__doc__, lambda s: bald_alive(s.read(uncertainty)), blocking=True),
        _check(uncertainty, "joins_one_to_one", joins_one_to_one.__doc__,
               lambda s: joins_one_to_one(s.read(losses), s.read(uncertainty)), blocking=True, deps=(losses,)),
        _check(hidden, "cached_teacher_matches_online", cached_teacher_matches_online.__doc__,
               lambda s: cached_teacher_matches_online(s.manifest(hidden).metrics), blocking=True),
    ]


def _ablation_checks(study: str, ablation: AblationSpec) -> list[dg.AssetChecksDefinition]:
    student, evaluation = Node("student", study, ablation.name), Node("evaluation", study, ablation.name)
    reference = Node("reference_evaluation", study)
    return [
        _check(student, "selected_share", selected_share.__doc__,
               lambda s: selected_share(s.read(student, "selections"), ablation), blocking=True),
        _check(evaluation, "quality_in_distribution", "In distribution the student is not worse than the base model.",
               lambda s: quality(s.read(evaluation), s.read(reference, "evaluations_base"), "test", "base"),
               blocking=False, deps=(reference,)),
        _check(evaluation, "quality_out_of_distribution", "Out of distribution the student is not worse than the teacher.",
               lambda s: quality(s.read(evaluation), s.read(reference, "evaluations_teacher"), "ood", "teacher"),
               blocking=False, deps=(reference,)),
    ]
