"""Asset checks of `token_uncertainty`: bounds, rounding, and the join with `token_losses`."""

from tokenuq_ml.tables.schemas import TOKEN_KEY
from tokenuq_pipeline.assets.check_outcome import ENTROPY_SLACK, Outcome, outcome, read
from tokenuq_pipeline.runtime.store import Store

NOISE_SHARE = 0.05
"""The noise floor that is allowed, as a share of mean BALD.

In float32 the floor is a thousandth of mean BALD or less, in bfloat16 several times mean BALD.
"""


def uncertainty_bounds(store: Store, study: str) -> Outcome:
    """Check that `0 <= bald <= predictive_entropy`, within 1e-5 nats."""
    frame = read(store, "token_uncertainty", study=study)
    low, high = frame["bald"] < -ENTROPY_SLACK, frame["bald"] > frame["predictive_entropy"] + ENTROPY_SLACK
    not_finite = ~(frame["bald"].is_finite() & frame["predictive_entropy"].is_finite())
    bad = int((low | high | not_finite).fill_null(True).sum())
    return outcome(
        len(frame) and not bad,
        f"{bad} of {len(frame)} tokens out of bounds",
        out_of_bounds=bad,
        below_zero=int(low.sum()),
        above_entropy=int(high.sum()),
    )


def bald_above_noise(store: Store, study: str) -> Outcome:
    """Check that the noise floor of BALD is below 5% of mean BALD, so that BALD measures dropout, not rounding.

    The floor is the mean difference between BALD and BALD in float64 with the same masks, on the tokens of
    `bald_reference`. Without active dropout BALD is zero, and the check fails too.
    """
    from tokenuq_ml.tables.bald_noise import bald_noise

    noise = bald_noise(store.home, study)
    if noise is None:
        return outcome(False, f"the noise floor was not measured; materialise {study}/token_uncertainty again")
    floor, mean = noise["floor"], noise["mean_bald"]
    return outcome(
        floor < NOISE_SHARE * mean,
        f"noise floor {floor:.2g} nats, mean BALD {mean:.2g} nats: {_share(floor, mean)}; "
        f"less than {NOISE_SHARE:.0%} is allowed",
        noise_floor=floor,
        mean_bald=mean,
        reference_tokens=noise["tokens"],
    )


def bald_above_noise_by_category(store: Store, study: str) -> Outcome:
    """Check that the noise floor is below 5% of mean BALD within each token category of the reference sample."""
    import polars as pl

    from tokenuq_ml.tables.bald_noise import NOISE, bald_noise

    if bald_noise(store.home, study) is None:
        return outcome(False, f"materialise {study}/token_uncertainty again", warn=True)
    categories = read(store, "token_losses", study=study).select(*TOKEN_KEY, pl.col("category").cast(pl.String))
    mean, floor = (
        frame.join(categories, on=TOKEN_KEY)
        .group_by("category")
        .agg(value.mean().alias(name), pl.len().alias(f"n_{name}"))
        for frame, value, name in (
            (read(store, "token_uncertainty", study=study), pl.col("bald"), "mean"),
            (read(store, "bald_reference", study=study), NOISE, "floor"),
        )
    )
    both = floor.join(mean, on="category").sort("category")
    noisy = both.filter(~(pl.col("floor") < NOISE_SHARE * pl.col("mean")))
    described = (
        f"{category}: noise floor {low:.2g} of {high:.2g} nats ({_share(low, high)}, {count} tokens)"
        for category, low, high, count in (noisy if len(noisy) else both)
        .select("category", "floor", "mean", "n_floor")
        .iter_rows()
    )
    return outcome(
        not len(noisy),
        "; ".join(described) or "the reference sample has no tokens",
        warn=True,
        **{
            f"noise_share_{row[0]}": row[1] / row[2]
            for row in both.select("category", "floor", "mean").iter_rows()
            if row[2]
        },
    )


def _share(floor: float, mean: float) -> str:
    return f"{floor / mean:.2%}" if mean else "BALD is zero everywhere"


def joins_one_to_one(store: Store, study: str) -> Outcome:
    """Check that `token_uncertainty` and `token_losses` hold the same tokens, each once."""
    return _same_tokens(store, study, "token_uncertainty", "uncertainty")


def changes_join_one_to_one(store: Store, study: str) -> Outcome:
    """Check that `teacher_change` and `token_losses` hold the same tokens, each once."""
    return _same_tokens(store, study, "teacher_change", "changes")


def estimates_join_one_to_one(store: Store, study: str) -> Outcome:
    """Check that `uncertainty_estimates` and `token_losses` hold the same tokens, each once."""
    return _same_tokens(store, study, "uncertainty_estimates", "estimates")


def _same_tokens(store: Store, study: str, table: str, counted_as: str) -> Outcome:
    losses = read(store, "token_losses", study=study).select(TOKEN_KEY)
    others = read(store, table, study=study).select(TOKEN_KEY)
    duplicates = len(losses) - losses.n_unique() + len(others) - others.n_unique()
    unmatched = len(losses.join(others, on=TOKEN_KEY, how="anti")) + len(others.join(losses, on=TOKEN_KEY, how="anti"))
    return outcome(
        not unmatched and not duplicates,
        f"{unmatched} tokens are in one table only, {duplicates} duplicate rows",
        losses=len(losses),
        alone=unmatched,
        doubled=duplicates,
        **{counted_as: len(others)},
    )
