"""The asset `token_losses`: tables of losses and of likeliest tokens, written shard by shard."""

from collections.abc import Mapping
from contextlib import ExitStack

import polars as pl

from tokenuq_ml.data.token_categories import token_texts
from tokenuq_ml.reports import token_plots
from tokenuq_ml.scoring.token_losses import with_categories
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.tables.parquet import TableWriter
from tokenuq_ml.tensor_digest import joined_digest


class LossTables:
    """Writers of `token_losses` and `token_alternatives`. A context manager; the tables are complete on exit."""

    def __init__(self, context: StageContext, tokenizer):
        self.context, self.tokenizer = context, tokenizer
        self._files = ExitStack()

    def __enter__(self) -> "LossTables":
        self._losses, self._alternatives = (
            self._files.enter_context(TableWriter(name, self.context.output(name), **self.context.asset.stamp))
            for name in ("token_losses", "token_alternatives")
        )
        return self

    def __exit__(self, *error) -> bool | None:
        return self._files.__exit__(*error)

    def frames(self, teacher: pl.DataFrame, base: pl.DataFrame, alternatives: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """Return the rows of one shard, by table.

        Args:
            teacher: rows under the teacher, one per response token.
            base: rows of the same tokens, in the same order, under the base model.
            alternatives: the likeliest tokens under the teacher.
        """
        rows = teacher.with_columns(base_loss=base["loss"], base_entropy=base["entropy"])
        texts = token_texts(self.tokenizer, alternatives["token_id"].to_list())
        return {
            "token_losses": with_categories(rows, self.tokenizer),
            "token_alternatives": alternatives.with_columns(token=pl.Series(texts, dtype=pl.String)),
        }

    def append(self, frames: Mapping[str, pl.DataFrame]) -> None:
        """Write the rows of one shard, or of several."""
        self._losses.append(frames["token_losses"])
        self._alternatives.append(frames["token_alternatives"])

    def report(self) -> None:
        """Draw the plot and report the asset, after the tables are complete."""
        tokens = pl.scan_parquet(self._losses.path)
        token_plots.losses_by_category(tokens, self.context.output("plots") / "losses_by_category.png")
        self.context.done(
            joined_digest(self._losses.digest, self._alternatives.digest),
            _mean_losses(tokens),
            plots={"Loss by token category": "plots/losses_by_category.png"},
        )


def _mean_losses(tokens: pl.LazyFrame) -> dict[str, float]:
    by_split = tokens.group_by(pl.col("split").cast(pl.String)).agg(pl.col("loss").mean()).sort("split")
    means = tokens.select(
        mean_loss=pl.col("loss").mean(),
        mean_base_loss=pl.col("base_loss").mean(),
        mean_entropy=pl.col("entropy").mean(),
        token_accuracy=(pl.col("rank") == 0).mean(),
    )
    return {
        **{f"mean_loss_{split}": mean for split, mean in by_split.collect(engine="streaming").iter_rows()},
        **means.collect(engine="streaming").to_dicts()[0],
    }
