"""The tables of fake stages: small, and consistent with each other."""

import polars as pl

from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.tables.parquet import read_table
from tokenuq_ml.tables.schemas import TABLES

MASK = [False, False, True, True, True, False]


def table(name: str, stage: str, request, spoil: bool) -> pl.DataFrame:
    """Return the stage's table, filled with what a check must reject if `spoil`."""
    if name in CONSTANT:
        return pl.DataFrame(CONSTANT[name])
    if name == "rejected_examples":
        return pl.DataFrame(schema=dict.fromkeys(TABLES[name].columns, pl.String))
    if name == "examples":
        return examples(request.assets[stage].fields, spoil)
    if name == "tokenized_dataset":
        return tokenized_dataset(request.inputs)
    if name in ("evaluations", "evaluation_examples"):
        return evaluated(name, 9.0 if spoil else 1.0)
    rows = tokens(read_table(request.inputs["tokenized_dataset"]))
    if name == "selections":
        return selections(rows, request.assets[stage].fields["ablation"]["select"], spoil)
    return TOKEN_TABLES[name](rows, spoil)


CONSTANT = {
    "rejected_rows": [{"number": 0, "file": "a", "row": 1, "line": 1, "reason": "empty text", "detail": "x"}],
    "training_log": [
        {
            "step": 1,
            "epoch": 1.0,
            "loss": 1.0,
            "mle_loss": 1.0,
            "distill_loss": None,
            "selected_share": 1.0,
            "learning_rate": 1e-4,
            "grad_norm": 1.0,
            "tokens": 6,
            "lora_rank": 4,
        }
    ],
    "uncertainty_analysis": [
        {
            "split": "all",
            "category": "all",
            "x": "loss",
            "y": "bald",
            "method": "spearman",
            "value": 0.5,
            "ci_low": 0.1,
            "ci_high": 0.9,
            "n": 9,
        }
    ],
    "curriculum": [{"step": 1, "epoch": 1.0, "category": "word", "n_tokens": 6, "n_selected": 2, "mean_loss": 1.0}],
    "curriculum_uncertainty": [
        {
            "fraction": 1.0,
            "step": 1,
            "category": "all",
            "n_tokens": 6,
            "loss": 1.0,
            "predictive_entropy": 1.0,
            "expected_entropy": 0.9,
            "bald": 0.1,
        }
    ],
}
"""Tables that are always the same."""


def examples(fields: dict, spoil: bool) -> pl.DataFrame:
    """As many examples of each split as the dataset's spec says; if `spoil`, all with the same question."""
    return pl.DataFrame(
        [
            {
                "example_id": f"{fields['name']}/{split}{number}",
                "split": split,
                "source": "{}",
                "messages": [
                    {"role": "user", "content": "Same?" if spoil else f"Is {split} | {number}\nodd?"},
                    {"role": "assistant", "content": "No."},
                ],
            }
            for split, size in fields["sizes"].items()
            for number in range(size)
        ]
    )


def tokenized_dataset(inputs: dict[str, str]) -> pl.DataFrame:
    """Every example as six tokens, three of them the response's; no two alike, or a check would find a leak."""
    found = []
    for key, folder in inputs.items():
        if key.startswith("examples/"):
            rows = read_table(folder).select("example_id", "split").iter_rows()
            found += [(key.removeprefix("examples/"), *row) for row in rows]
    return pl.DataFrame(
        [
            {
                "example_id": example_id,
                "dataset": dataset,
                "split": split,
                "input_ids": [1, 5, 6, 7, 8 + number, 2],
                "response_mask": MASK,
            }
            for number, (dataset, example_id, split) in enumerate(found)
        ]
    )


def tokens(tokenized: pl.DataFrame) -> pl.DataFrame:
    """One row per response token: example_id, dataset, split, position."""
    return pl.DataFrame(
        [
            {"example_id": row["example_id"], "dataset": row["dataset"], "split": row["split"], "position": position}
            for row in tokenized.iter_rows(named=True)
            for position, scored in enumerate(row["response_mask"])
            if scored
        ]
    )


def evaluated(name: str, loss: float) -> pl.DataFrame:
    """The loss on the test split and out of distribution, as `evaluations` or by example."""
    splits = [{"dataset": "toy", "split": "test"}, {"dataset": "extra", "split": "ood"}]
    if name == "evaluation_examples":
        row = {"metric": "loss", "numerator": loss, "denominator": 1.0}
        return pl.DataFrame([{**row, **split, "example_id": f"{split['dataset']}/a"} for split in splits])
    row = {"family": "x", "seed": 0, "metric": "loss", "ci_low": 0.9, "ci_high": 1.1, "n": 2, "higher_is_better": False}
    return pl.DataFrame([{**row, **split, "value": loss} for split in splits])


def token_losses(rows: pl.DataFrame, spoil: bool) -> pl.DataFrame:
    """If `spoil`, without the last token."""
    rows = rows.head(len(rows) - 1) if spoil else rows
    return rows.with_columns(
        token_id=pl.lit(5),
        token=pl.lit("a"),
        category=pl.lit("word"),
        rank=pl.lit(0),
        **{column: pl.lit(1.0) for column in ("loss", "entropy", "base_loss", "base_entropy")},
    )


def token_alternatives(rows: pl.DataFrame, spoil: bool) -> pl.DataFrame:
    """One alternative per held-out token."""
    held_out = rows.filter(pl.col("split") != "train").select("example_id", "position")
    return held_out.with_columns(choice=pl.lit(0), token_id=pl.lit(5), token=pl.lit("a"), probability=pl.lit(0.5))


def token_uncertainty(rows: pl.DataFrame, spoil: bool) -> pl.DataFrame:
    """If `spoil`, with more BALD than entropy."""
    return rows.select(
        "example_id",
        "position",
        predictive_entropy=pl.lit(1.0),
        expected_entropy=pl.lit(0.9),
        bald=pl.lit(2.0 if spoil else 0.1),
        bald_std_error=pl.lit(0.01),
        mc_loss=pl.lit(1.0),
        n_samples=pl.lit(5),
    )


def bald_reference(rows: pl.DataFrame, spoil: bool) -> pl.DataFrame:
    """A noise floor of a thousandth of BALD."""
    return rows.select("example_id", "position", bald=pl.lit(0.1), bald_float64=pl.lit(0.1001))


def evaluation_tokens(rows: pl.DataFrame, spoil: bool) -> pl.DataFrame:
    """Loss and entropy of held-out tokens."""
    held_out = rows.filter(pl.col("split").is_in(["test", "ood"]))
    return held_out.select("example_id", "position", loss=pl.lit(1.0), entropy=pl.lit(1.0))


TOKEN_TABLES = {
    "token_losses": token_losses,
    "token_alternatives": token_alternatives,
    "token_uncertainty": token_uncertainty,
    "bald_reference": bald_reference,
    "evaluation_tokens": evaluation_tokens,
}


def selections(rows: pl.DataFrame, select: dict, spoil: bool) -> pl.DataFrame:
    """One step over the train split that selects the first tokens, as many as asked for; none if `spoil`."""
    rows = rows.filter(pl.col("split") == "train")
    count = 0 if spoil else count_selected(1.0 if select["by"] == "all" else select["quantile"], len(rows))
    return rows.select(
        "example_id",
        "position",
        step=pl.lit(1),
        epoch=pl.lit(1.0),
        loss=pl.lit(1.0),
        selected=pl.int_range(pl.len()) < count,
        objective=pl.lit("mle"),
    )
