"""Scores of suspect tokens and examples, from the token tables: wrong labels, odd training, repeats, never selected.

A wrong label is a token that the teacher finds unlikely although it is sure of another one. The scores follow confident
learning (Northcutt et al. 2021, arXiv 1911.00068): `self_confidence` is one minus the label's probability, and `margin`
the probability of the likeliest other token minus the label's, bounded from below by the entropy, because the tables
hold no full distributions. docs/results/planted_noise.md compares the scores on planted errors.

Does not import torch.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import polars as pl

from tokenuq_ml.tables.schemas import TOKEN_KEY

_P, _BASE_P = (-pl.col("loss")).exp(), (-pl.col("base_loss")).exp()
# The largest probability is at least exp(-entropy), because the entropy is at least its surprisal.
_MARGIN = pl.when(pl.col("rank") > 0).then(((-pl.col("entropy")).exp() - _P).clip(0)).otherwise(0.0)
_BALD_QUANTILE = (pl.col("bald").rank() - 0.5) / pl.len()
_EXCESS = pl.col("loss") - pl.col("entropy")

TOKEN_SCORES: Mapping[str, pl.Expr] = {
    "loss": pl.col("loss"),
    "self_confidence": 1 - _P,
    "margin": _MARGIN,
    "excess": _EXCESS,
    "loss_low_bald": pl.col("loss") * (1 - _BALD_QUANTILE),
    "excess_low_bald": _EXCESS.clip(0) * (1 - _BALD_QUANTILE),
    "worsened": pl.col("loss") - pl.col("base_loss"),
    "base_loss": pl.col("base_loss"),
    "base_excess": pl.col("base_loss") - pl.col("base_entropy"),
}
"""Name -> score of a token, from columns of `token_losses` and `token_uncertainty`; higher is more suspect.

- `loss`: cross-entropy under the teacher. `self_confidence`, `margin`: see above.
- `excess`: loss minus entropy, the surprise beyond what the teacher expects.
- `loss_low_bald`, `excess_low_bald`: the same, lower where BALD is high, because there the teacher knows little.
- `worsened`: how much training has raised the loss. `base_loss`, `base_excess`: under the model before training.
"""

Aggregate = Literal["mean", "max", "top3", "top5"]
AGGREGATES: Mapping[str, pl.Expr] = {
    "mean": pl.col("score").mean(),
    "max": pl.col("score").max(),
    "top3": pl.col("score").top_k(3).mean(),
    "top5": pl.col("score").top_k(5).mean(),
}
"""Name -> score of an example from those of its tokens."""

TOKEN_SCORE, AGGREGATE = "excess", "mean"
"""What `tokenuq curate` ranks by: 0 on average for answers that are as surprising as the teacher expects."""


def token_scores(
    tokens: pl.DataFrame, score: str = TOKEN_SCORE, categories: Collection[str] | None = None
) -> pl.DataFrame:
    """Return `example_id, position, score` of tokens; a higher score is more suspect.

    Args:
        tokens: rows of both token tables, joined. BALD is compared among these tokens.
        score: a name of `TOKEN_SCORES`.
        categories: score tokens of these categories only; default: all tokens.
    """
    scored = tokens.with_columns(score=TOKEN_SCORES[score].cast(pl.Float64))
    if categories is not None:
        scored = scored.filter(pl.col("category").cast(pl.String).is_in(list(categories)))
    return scored.select(*TOKEN_KEY, "score")


def example_scores(scores: pl.DataFrame, aggregate: str = AGGREGATE) -> pl.DataFrame:
    """Return `example_id, score` of examples, from what `token_scores` returns."""
    return scores.group_by("example_id").agg(AGGREGATES[aggregate].alias("score")).sort("example_id")


def loss_changes(tokens: pl.DataFrame) -> pl.DataFrame:
    """Return `example_id, loss, base_loss, bald, change, change_score` of examples.

    `change` is the mean fall of the loss from base model to teacher, in nats per token. `change_score` is its distance
    from the median in units of the median absolute deviation, scaled like a standard deviation.
    """
    means = tokens.group_by("example_id").agg(pl.col("loss", "base_loss", "bald").mean()).sort("example_id")
    means = means.with_columns(change=pl.col("base_loss") - pl.col("loss"))
    distance = (pl.col("change") - pl.col("change").median()).abs()
    spread = 1.4826 * distance.median()
    return means.with_columns(change_score=pl.when(spread > 0).then(distance / spread).otherwise(0.0))


def selected_shares(selections: Mapping[str, pl.LazyFrame]) -> tuple[pl.DataFrame, list[str]]:
    """Return `example_id, selected_share`, and the ablations that leave tokens out.

    `selected_share` is the share of an example's tokens that at least one of these ablations selects at some step.
    Ablations that select everything say nothing and are ignored.

    Args:
        selections: ablation -> its table `selections`.
    """
    tokens, partial = [], []
    for name, table in selections.items():
        ever = table.group_by(TOKEN_KEY).agg(pl.col("selected").any(), pl.col("selected").all().alias("always"))
        found = ever.collect(engine="streaming")
        if not found["always"].all():
            tokens.append(found.drop("always"))
            partial.append(name)
    if not tokens:
        return pl.DataFrame(schema={"example_id": pl.String, "selected_share": pl.Float64}), []
    by_any = pl.concat(tokens).group_by(TOKEN_KEY).agg(pl.col("selected").any())
    shares = by_any.group_by("example_id").agg(selected_share=pl.col("selected").mean())
    return shares.sort("example_id"), partial
