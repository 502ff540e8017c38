"""Child process of `<study>/uncertainty_analysis`: correlations between the columns of the token tables.

Of a synthetic language also how well the same columns rank tokens by their divergence from the truth.
"""

from pathlib import Path

import polars as pl

from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.reports import plots
from tokenuq_ml.scoring.correlations import correlation_table
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.rank_against_truth import RANKING, rank_against_truth
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_ml.tensor_digest import joined_digest

HEADLINES = {
    "spearman_loss_bald": ("loss", "bald", "spearman"),
    "spearman_loss_expected_entropy": ("loss", "expected_entropy", "spearman"),
    "spearman_loss_entropy": ("loss", "entropy", "spearman"),
    "pearson_loss_bald": ("loss", "bald", "pearson"),
    "partial_spearman_loss_bald_given_entropy": ("loss", "bald", "partial_spearman"),
}


def joined_tokens(losses: pl.DataFrame, uncertainty: pl.DataFrame) -> pl.DataFrame:
    """Join the two token tables.

    Raises:
        InputError: the tables do not have the same tokens, or have one twice.
    """
    try:
        tokens = losses.join(uncertainty, on=TOKEN_KEY, how="inner", validate="1:1")
    except pl.exceptions.ComputeError as error:
        raise InputError(
            "token_losses or token_uncertainty has duplicate tokens (example_id, position); materialise both again"
        ) from error
    if not len(tokens) == len(losses) == len(uncertainty):
        raise InputError(
            f"token_losses has {len(losses):,} rows and token_uncertainty {len(uncertainty):,}, with {len(tokens):,} "
            "tokens in common; materialise both again"
        )
    return tokens


def _with_further_scores(request: StageRequest, tokens: pl.DataFrame) -> pl.DataFrame:
    """Join the scores of the tables that only some studies have, under the names of `rank_against_truth.FURTHER`.

    Raises:
        InputError: a table does not have the same tokens.
    """
    for table in request.assets["uncertainty_analysis"].fields.get("ranked", ()):
        found = read_table(request.inputs[table]).rename({"change": "teacher_change"}, strict=False)
        joined = tokens.join(found, on=TOKEN_KEY, how="inner")
        if not len(joined) == len(tokens) == len(found):
            raise InputError(
                f"{table} has {len(found):,} rows and token_losses {len(tokens):,}, with {len(joined):,} in common; "
                f"materialise {table} again"
            )
        tokens = joined
    return tokens


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the outputs `uncertainty_analysis` and `plots`."""
    asset = request.assets["uncertainty_analysis"]
    tokens = joined_tokens(read_table(request.inputs["token_losses"]), read_table(request.inputs["token_uncertainty"]))
    table = correlation_table(tokens, EvaluationSpec(**asset.fields["evaluation"]))
    digest = write_table(
        table,
        "uncertainty_analysis",
        asset.outputs["uncertainty_analysis"],
        **asset.stamp,
    )
    plots.loss_vs_bald(tokens, table, Path(asset.outputs["plots"]) / "loss_vs_bald.png")
    overall = table.filter((pl.col("split") == "all") & (pl.col("category") == "all"))
    headlines = {
        name: overall.filter((pl.col("x") == x) & (pl.col("y") == y) & (pl.col("method") == method))["value"].item()
        for name, (x, y, method) in HEADLINES.items()
    }
    reporter.info(
        f"{request.study}: Spearman of loss with BALD {headlines['spearman_loss_bald'] or float('nan'):.3f}, "
        f"with expected entropy {headlines['spearman_loss_expected_entropy'] or float('nan'):.3f}"
    )
    digests, ranking = [digest], {}
    if RANKING in asset.outputs:
        ranked, ranking = rank_against_truth(request, _with_further_scores(request, tokens))
        digests.append(write_table(ranked, RANKING, asset.outputs[RANKING], **asset.stamp))
    medians = tokens.group_by(pl.col("category").cast(pl.String)).agg(pl.col("bald").median()).sort("category")
    reporter.done(
        AssetResult(
            stage="uncertainty_analysis",
            data_version=digests[0] if len(digests) == 1 else joined_digest(*digests),
            metrics={
                **headlines,
                **ranking,
                "tokens": len(tokens),
                "mean_loss": tokens["loss"].mean(),
                "mean_bald": tokens["bald"].mean(),
                **{f"median_bald_{category}": median for category, median in medians.iter_rows()},
            },
            plots={"Loss against BALD": "plots/loss_vs_bald.png"},
        )
    )


if __name__ == "__main__":
    runner.main(run)
