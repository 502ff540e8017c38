"""Print the tables of docs/results/planted_noise.md: `python -m benchmarks.planted_noise_tables FOLDER`.

FOLDER holds what `planted_noise.py` wrote. Needs the tokenizer only. Errors of each kind are compared with correct rows
alone.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.common import model_folder
from benchmarks.planted_noise import CLEANLAB_METHODS
from benchmarks.precision_tables import table
from tokenuq_ml.data.token_categories import categorise, special_ids, token_texts
from tokenuq_ml.models.load import load_tokenizer
from tokenuq_ml.scoring.suspects import AGGREGATE, AGGREGATES, TOKEN_SCORE, TOKEN_SCORES, example_scores, token_scores
from tokenuq_ml.tables.schemas import TOKEN_KEY

KINDS = {"final": "the number after `####` alone", "worked": "one step, and all numbers after it"}
TOP = 0.05
MEASURES = ("precision at 5%", "average precision", "AUROC")


class Seed:
    """The tables of one run."""

    def __init__(self, folder: Path):
        self.tokens = with_categories(pl.read_parquet(folder / "tokens.parquet").sort(TOKEN_KEY))
        self.planted: dict[str, str] = json.loads((folder / "planted.json").read_text())["planted"]
        cleanlab = folder / "cleanlab.parquet"
        self.cleanlab = pl.read_parquet(cleanlab) if cleanlab.exists() else None

    def measures(self, scores: pl.DataFrame, kind: str) -> tuple[float, float, float]:
        """Return the measures of `example_id, score` for the errors of a kind among correct rows."""
        rows = scores.filter(pl.col("example_id").map_elements(lambda i: self.planted.get(i, kind) == kind, pl.Boolean))
        # Shuffled, so that ties are in no order.
        rows = rows.sample(fraction=1, shuffle=True, seed=0)
        wrong = [example_id in self.planted for example_id in rows["example_id"]]
        top = rows.with_columns(wrong=pl.Series(wrong)).sort("score", descending=True).head(round(TOP * len(rows)))
        score = rows["score"].to_numpy()
        return top["wrong"].mean(), average_precision_score(wrong, score), roc_auc_score(wrong, score)

    def cleanlab_scores(self, method: str, aggregate: str, keys: pl.DataFrame | None = None) -> pl.DataFrame:
        """Return `example_id, score` of the subset or its tokens `keys`; cleanlab's qualities are low for suspects."""
        qualities = _only(self.cleanlab, keys)
        return example_scores(qualities.select(*TOKEN_KEY, score=-pl.col(method).cast(pl.Float64)), aggregate)


def with_categories(tokens: pl.DataFrame) -> pl.DataFrame:
    """Return the tokens with the column `category` of `token_losses`."""
    tokenizer = load_tokenizer(model_folder())
    special, parts = set(special_ids(tokenizer)), []
    for rows in tokens.partition_by("example_id", maintain_order=True):
        ids = rows["token_id"].to_list()
        found = categorise(token_texts(tokenizer, ids), [token_id in special for token_id in ids])
        parts.append(rows.with_columns(category=pl.Series(found)))
    return pl.concat(parts)


def _only(tokens: pl.DataFrame, keys: pl.DataFrame | None) -> pl.DataFrame:
    return tokens if keys is None else tokens.join(keys, on=TOKEN_KEY, how="semi")


def over_seeds(values: Iterable[float]) -> str:
    """Return mean and standard deviation."""
    found = list(values)
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{spread}"


def measured(seeds: list[Seed], scores: Mapping[str, list[pl.DataFrame]]) -> list[list]:
    """Return a row per name: each measure of each kind, over the seeds."""
    rows = []
    for name, frames in scores.items():
        row = [name]
        for kind in KINDS:
            found = [seed.measures(frame, kind) for seed, frame in zip(seeds, frames, strict=True)]
            row += [over_seeds(values) for values in zip(*found, strict=True)]
        rows.append(row)
    return rows


def _average_precisions(seeds: list[Seed], score: str, categories: tuple[str, ...] | None) -> list[str]:
    """Return the average precision of each kind by each aggregate, over the seeds."""
    cells = []
    for kind in KINDS:
        for aggregate in AGGREGATES:
            frames = [example_scores(token_scores(seed.tokens, score, categories), aggregate) for seed in seeds]
            cells.append(over_seeds(seed.measures(frame, kind)[1] for seed, frame in zip(seeds, frames, strict=True)))
    return cells


def main() -> None:
    """Run the command line."""
    seeds = [
        Seed(folder) for folder in sorted(Path(sys.argv[1]).glob("seed-*")) if (folder / "tokens.parquet").exists()
    ]
    has_bald = all("bald" in seed.tokens.columns for seed in seeds)
    names = [score for score in TOKEN_SCORES if has_bald or "bald" not in score]
    columns = ["score", *(f"{kind}: {measure}" for kind in KINDS for measure in MEASURES)]
    every = {score: [example_scores(token_scores(seed.tokens, score), AGGREGATE) for seed in seeds] for score in names}
    print(table(f"All rows, {AGGREGATE} of the tokens", columns, measured(seeds, every)))
    columns_by_aggregate = ["score", *(f"{kind}: {aggregate}" for kind in KINDS for aggregate in AGGREGATES)]
    for title, categories in (("all tokens", None), ("numbers only (`--tokens number`)", ("number",))):
        rows = [[score, *_average_precisions(seeds, score, categories)] for score in names]
        print(table(f"Average precision by aggregate, {title}", columns_by_aggregate, rows))
    numbers = {
        score: [example_scores(token_scores(seed.tokens, score, ("number",)), AGGREGATE) for seed in seeds]
        for score in names
    }
    print(table(f"All rows, {AGGREGATE} of the numbers", columns, measured(seeds, numbers)))
    compared = [seed for seed in seeds if seed.cleanlab is not None]
    if not compared:
        return
    subsets = [seed.tokens.join(seed.cleanlab.select(TOKEN_KEY), on=TOKEN_KEY, how="semi") for seed in compared]
    numbers_of = [subset.filter(pl.col("category") == "number").select(TOKEN_KEY) for subset in subsets]
    scores = {}
    for aggregate in ("mean", "max", "top3"):
        for name, keys in (("", [None] * len(compared)), (", numbers", numbers_of)):
            pairs = list(zip(compared, keys, strict=True))
            for score in (TOKEN_SCORE, "margin"):
                scores[f"{score}, {aggregate}{name}"] = [
                    example_scores(token_scores(_only(subset, of), score), aggregate)
                    for subset, of in zip(subsets, keys, strict=True)
                ]
            for method in CLEANLAB_METHODS:
                scores[f"cleanlab {method}, {aggregate}{name}"] = [
                    seed.cleanlab_scores(method, aggregate, of) for seed, of in pairs
                ]
    print(table("The subset that cleanlab scores", columns, measured(compared, scores)))


if __name__ == "__main__":
    main()
