"""The rules of the asset checks: what must hold of a published table, and what should.

Each rule is a function of the store. It reads tables with polars and manifests, never tensors.
"""

import polars as pl

from tokenuq_ml.config import BASE_ROW, TEACHER_ROW, AblationSpec, Schedule
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_pipeline.assets.asset import StageCheck
from tokenuq_pipeline.assets.check_outcome import ENTROPY_SLACK, Outcome, outcome, read
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import table_path


def one_row_per_response_token(store: Store, study: str) -> Outcome:
    """Every response token of every split once, and no prompt or padding token."""
    expected = (
        read(store, "tokenized_dataset", study=study)
        .select(
            "example_id",
            "split",
            position=pl.int_ranges(0, pl.col("response_mask").list.len(), dtype=pl.Int32),
            mask="response_mask",
        )
        .explode("position", "mask")
        .filter("mask")
        .drop("mask")
    )
    rows = read(store, "token_losses", study=study).select(pl.col("example_id", "split").cast(pl.String), "position")
    on = ["example_id", "split", "position"]
    missing, odd = expected.join(rows, on=on, how="anti"), rows.join(expected, on=on, how="anti")
    double = len(rows) - rows.n_unique()
    return outcome(
        not len(missing) and not len(odd) and not double,
        f"{len(missing)} response tokens without a row, {len(odd)} rows of no response token, {double} double rows",
        tokens=len(expected),
        rows=len(rows),
        missing=len(missing),
        unexpected=len(odd),
        doubled=double,
    )


def no_question_in_two_splits(store: Store, dataset: str) -> Outcome:
    """The first user message, in lower case and with single spaces, is in one split only."""
    questions = read(store, "examples", dataset=dataset).select(
        "split",
        question=pl.col("messages")
        .list.eval(pl.element().filter(pl.element().struct["role"] == "user").struct["content"].first())
        .list.first()
        .str.to_lowercase()
        .str.replace_all(r"\s+", " ")
        .str.strip_chars(),
    )
    shared = (
        questions.filter(pl.col("question").is_not_null())
        .group_by("question")
        .agg(pl.col("split").unique())
        .filter(pl.col("split").list.len() > 1)
    )
    return outcome(
        not len(shared),
        f"{len(shared)} questions in more than one split",
        shared_questions=len(shared),
        first=shared["question"].sort()[0][:200] if len(shared) else None,
    )


def no_tokens_in_two_splits(store: Store, study: str) -> Outcome:
    """No tokenised example of train is, token for token, in another split, over all of the study's datasets."""
    rows = read(store, "tokenized_dataset", study=study).select(
        pl.col("split").cast(pl.String), "input_ids", "example_id"
    )
    train, others = rows.filter(pl.col("split") == "train"), rows.filter(pl.col("split") != "train")
    leaked = others.join(train.select("input_ids"), on="input_ids", how="semi").sort("example_id")
    return outcome(
        not len(leaked),
        f"{len(leaked)} of {len(others)} held-out examples are in train",
        leaked=len(leaked),
        first=", ".join(leaked["example_id"].head(5)) or None,
    )


def losses_finite(store: Store, study: str) -> Outcome:
    """No NaN, infinity or null among losses and entropies, and none below zero by more than rounding."""
    columns = ["loss", "entropy", "base_loss", "base_entropy"]
    frame = read(store, "token_losses", study=study).select(columns)
    bad = {
        name: int((~frame[name].is_finite() | (frame[name] < -ENTROPY_SLACK)).fill_null(True).sum()) for name in columns
    }
    return outcome(
        len(frame) and not any(bad.values()),
        f"{sum(bad.values())} of {len(frame)} rows hold a value that no loss or entropy can have",
        **bad,
    )


def cached_teacher_matches_online(store: Store, study: str) -> Outcome:
    """The cached states give the online teacher's distribution, on a sample: compared in the child, which has both."""
    manifest = store.read_manifest(f"{study}/teacher_hidden") or {}
    found = manifest.get("checks", {}).get("cached_teacher_matches_online")
    if found is None:
        return outcome(False, "the stage did not compare them")
    return outcome(found["passed"], found["description"], **found["figures"])


def selections_as_specified(store: Store, study: str, ablation: AblationSpec) -> Outcome:
    """`ceil(q * N)` tokens of each optimiser batch, or of the train split; a threshold asks for no number."""
    rows = read(store, "selections", study=study, ablation=ablation.name)
    select = ablation.select
    if select.is_decided_before_training:
        rows = rows.group_by(TOKEN_KEY).agg(
            pl.col("selected").first(), step=pl.lit(0), odd=pl.col("selected").n_unique() > 1
        )
        if rows["odd"].any():
            return outcome(False, "a static selection changed between steps", tokens=int(rows["odd"].sum()))
    if select.unit == "document":
        rows = rows.group_by("step", "example_id").agg(
            pl.col("selected").first(), odd=pl.col("selected").n_unique() > 1
        )
        if rows["odd"].any():
            return outcome(False, "an example is selected in part", examples=int(rows["odd"].sum()))
    units = "tokens" if select.unit == "token" else "examples"
    groups = rows.group_by("step").agg(n=pl.len(), selected=pl.col("selected").sum()).sort("step")
    total, selected = int(groups["n"].sum()), int(groups["selected"].sum())
    figures = {"share": selected / total if total else None, "steps": len(groups)}
    if not select.by_quantile:
        return outcome(total, f"{selected} of {total} {units} {select.keep} the threshold", **figures)
    last = int(groups["step"].max() or 1)
    wrong = [
        step for step, n, chosen in groups.iter_rows() if chosen != count_selected(quantile_at(ablation, step, last), n)
    ]
    return outcome(
        total and not wrong,
        f"{selected} of {total} {units} selected; {len(wrong)} batches off the spec",
        wrong_steps=", ".join(map(str, wrong[:10])) or None,
        **figures,
    )


def quantile_at(ablation: AblationSpec, step: int, steps: int) -> float:
    """The quantile that the spec asks for at a step."""
    select = ablation.select
    if select.takes_all:
        return 1.0
    if isinstance(select.quantile, Schedule):
        return select.quantile.at((step - 1) / (steps - 1) if steps > 1 else 0.0)
    return select.quantile


def _loss(store: Store, study: str, ablation: str, split: str) -> pl.DataFrame:
    """dataset, value, ci_low, ci_high of a split's loss; no rows where the model was not evaluated yet."""
    if not store.path(table_path("evaluations", study=study, ablation=ablation)).is_dir():
        return pl.DataFrame(schema={"dataset": pl.String, **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64)})
    return (
        read(store, "evaluations", study=study, ablation=ablation)
        .filter((pl.col("metric") == "loss") & (pl.col("split") == split))
        .select("dataset", "value", "ci_low", "ci_high")
    )


def quality_in_distribution(store: Store, study: str, ablation: str) -> Outcome:
    """The student's loss on the test split is not above the base model's."""
    both = _compare(store, study, ablation, BASE_ROW, "test")
    if not len(both):
        return _nothing_to_compare(study)
    return outcome(
        not len(both.filter(pl.col("value") > pl.col("value_other"))),
        "; ".join(
            f"{dataset}: {student:.3f} nats a token, the base model {base:.3f}"
            for dataset, student, base in both.select("dataset", "value", "value_other").iter_rows()
        ),
        warn=True,
    )


def ood_kept(store: Store, study: str, ablation: str) -> Outcome:
    """The student's loss out of distribution is not above the teacher's interval."""
    if not len(_loss(store, study, ablation, "ood")):
        return outcome(True, "the study has no ood data", warn=True)
    both = _compare(store, study, ablation, TEACHER_ROW, "ood")
    if not len(both):
        return _nothing_to_compare(study)
    return outcome(
        not len(both.filter(pl.col("value") > pl.col("ci_high_other"))),
        "; ".join(
            f"{dataset}: {student:.3f} nats a token, the teacher {teacher:.3f} (up to {high:.3f})"
            for dataset, student, teacher, high in both.select(
                "dataset", "value", "value_other", "ci_high_other"
            ).iter_rows()
        ),
        warn=True,
    )


def judge_is_consistent(store: Store, study: str, *models: str) -> Outcome:
    """The judge's verdicts stand, whichever output it reads first, for more pairs than flip with the order."""
    flips = pl.concat(
        [
            read(store, "evaluations", study=study, ablation=model)
            .filter(pl.col("metric") == "position_bias")
            .select("value", "n", model=pl.lit(model))
            for model in models
        ]
    )
    if not len(flips):
        return outcome(True, "nothing was judged: the asset's metadata says why", warn=True)
    worst = flips.sort("value", descending=True).row(0, named=True)
    return outcome(
        worst["value"] < 0.5,
        f"{worst['value']:.0%} of the {worst['n']} verdicts on {worst['model']} flip with the order of the outputs"
        + ("" if worst["value"] < 0.5 else ": the win rate tells of the judge's bias, not of the model"),
        warn=True,
        flipped=worst["value"],
        pairs=worst["n"],
    )


def _compare(store: Store, study: str, ablation: str, other: str, split: str) -> pl.DataFrame:
    """The split's loss of a student beside that of base or teacher, by dataset."""
    return _loss(store, study, ablation, split).join(_loss(store, study, other, split), on="dataset", suffix="_other")


def _nothing_to_compare(study: str) -> Outcome:
    return outcome(False, f"nothing to compare with: materialise {study}/reference_evaluation", warn=True)


def selected_share(study: str, ablation: AblationSpec) -> StageCheck:
    """The student's own check. It runs in the student's op: that op also makes what is downstream of it."""
    return StageCheck(
        "selected_share",
        "As many tokens are selected as the spec says.",
        lambda store: selections_as_specified(store, study, ablation),
    )
