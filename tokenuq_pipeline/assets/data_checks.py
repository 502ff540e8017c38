"""Asset checks of datasets, tokens and the teacher's losses. Each is a function of the store.

Checks read tables with polars and manifests, but no tensors.
"""

from tokenuq_ml.data.examples import TEXT_ROLE
from tokenuq_pipeline.assets.check_outcome import ENTROPY_SLACK, Outcome, outcome, read
from tokenuq_pipeline.runtime.store import Store


def no_question_in_two_splits(store: Store, dataset: str) -> Outcome:
    """Check that no question (`Example.question`) is in two splits; letter case and white space are ignored."""
    import polars as pl

    asked = pl.col("source").str.json_path_match("$.question_turn").cast(pl.Int64)
    texts = (
        pl.col("messages")
        .list.head(asked.fill_null(2**31 - 1) + 1)
        .list.eval(pl.element().filter(pl.element().struct["role"].is_in(["user", TEXT_ROLE])).struct["content"])
    )
    questions = read(store, "examples", dataset=dataset).select(
        "split",
        question=pl.when(asked.is_null())
        .then(texts.list.first())
        .otherwise(texts.list.join(" "))
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
    """Check that no tokenised example of train is, token for token, in another split of any of the study's datasets."""
    import polars as pl

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


def one_row_per_response_token(store: Store, study: str) -> Outcome:
    """Check that each response token of every split has one row, and that no prompt or padding token has one."""
    import polars as pl

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
    missing, unexpected = expected.join(rows, on=on, how="anti"), rows.join(expected, on=on, how="anti")
    duplicates = len(rows) - rows.n_unique()
    return outcome(
        not len(missing) and not len(unexpected) and not duplicates,
        f"{len(missing)} response tokens without a row, {len(unexpected)} rows of other tokens, "
        f"{duplicates} duplicate rows",
        tokens=len(expected),
        rows=len(rows),
        missing=len(missing),
        unexpected=len(unexpected),
        doubled=duplicates,
    )


def losses_finite(store: Store, study: str) -> Outcome:
    """Check that losses and entropies are finite, not null, and below zero by no more than rounding."""
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
    """Check that cached states give the online teacher's distribution on a sample; the stage itself compares them."""
    manifest = store.read_manifest(f"{study}/teacher_hidden")
    found = manifest.checks.get("cached_teacher_matches_online") if manifest else None
    if found is None:
        return outcome(False, "the stage did not compare them")
    return outcome(found.passed, found.description, **found.figures)
