"""What a family selects over time: the share of each token category, by quarters of the training."""

from typing import NamedTuple

import polars as pl

from tokenuq_ml.reports.comparisons.study_families import StudyFamilies

QUARTERS = 4
EVERY = "all"
FEWEST_STEPS = QUARTERS


class Selected(NamedTuple):
    """One category of a study: its selected share in each quarter of the steps."""

    study: str
    category: str
    """A token category, or `all`."""
    tokens: int
    """Tokens of the category that one seed has trained on, counted in every epoch."""
    seeds: int
    shares: tuple[float, ...]
    """Mean over seeds, of the quarters in which the category has tokens."""
    lowest: float
    """The smallest change over seeds, from the first to the last quarter."""
    highest: float

    @property
    def change(self) -> float:
        """Return how far the share moves from the first to the last quarter."""
        return self.shares[-1] - self.shares[0]

    def row(self) -> dict:
        """Return it as a row of the table `selected`."""
        quarters = {f"quarter_{number + 1}": share for number, share in enumerate(self.shares)}
        about = {"study": self.study, "category": self.category, "tokens": self.tokens, "seeds": self.seeds}
        return {
            **about,
            **quarters,
            "change": self.change,
            "lowest_change": self.lowest,
            "highest_change": self.highest,
        }


def selected_over_time(families: StudyFamilies, family: str) -> list[Selected]:
    """Return the categories of a study, `all` first, then by their number of tokens.

    A category without tokens in a quarter is left out, and so is everything if there are fewer steps than quarters.

    Args:
        families: of the study.
        family: whose selections are summed up, at its chosen setting.
    """
    models = families.rows[family]["models"].split()
    by_seed = [_by_quarter(families.inputs.read(families.study, "curriculum", model)) for model in models]
    if any(table.is_empty() for table in by_seed):
        return []
    shared = set.intersection(*(_complete(table) for table in by_seed))
    found = []
    for category in shared:
        shares = [_shares(table, category) for table in by_seed]
        changes = [own[-1] - own[0] for own in shares]
        means = tuple(sum(quarter) / len(shares) for quarter in zip(*shares, strict=True))
        tokens = int(by_seed[0].filter(category=category)["n_tokens"].sum())
        found.append(Selected(families.study, category, tokens, len(models), means, min(changes), max(changes)))
    return sorted(found, key=lambda one: (one.category != EVERY, -one.tokens, one.category))


def _by_quarter(curriculum: pl.DataFrame) -> pl.DataFrame:
    """Return tokens and selected tokens by quarter and category, and of `all` categories; empty with too few steps."""
    curriculum = curriculum.with_columns(pl.col("category").cast(pl.String))
    steps = int(curriculum["step"].max() or 0)
    if steps < FEWEST_STEPS:
        return curriculum.clear()
    quarter = ((pl.col("step") - 1) * QUARTERS // steps).alias("quarter")
    counts = curriculum.with_columns(quarter).select("quarter", "category", "n_tokens", "n_selected")
    both = pl.concat([counts, counts.with_columns(category=pl.lit(EVERY))])
    return both.group_by("quarter", "category").agg(pl.col("n_tokens", "n_selected").sum()).sort("quarter", "category")


def _complete(table: pl.DataFrame) -> set[str]:
    """Return the categories that have tokens in every quarter."""
    counts = table.filter(pl.col("n_tokens") > 0).group_by("category").len()
    return set(counts.filter(len=QUARTERS)["category"])


def _shares(table: pl.DataFrame, category: str) -> list[float]:
    own = table.filter(category=category).sort("quarter")
    return (own["n_selected"] / own["n_tokens"]).to_list()
