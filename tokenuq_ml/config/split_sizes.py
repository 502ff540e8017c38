"""The key `sizes` of a dataset: rows per split as counts, as shares of what a split is drawn from, or all."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from tokenuq_ml.config.base import SPLITS, Split

_ALLOWED = "counts (`train: 2000`), shares (`train: 0.9`) or `all`"


def _check(value: Any) -> Any:
    """Return `sizes` as given if it is `all`, counts, or shares.

    Raises:
        ValueError: it is something else, or counts and shares are mixed.
    """
    if value == "all":
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"must be {_ALLOWED}, is {value!r}")
    if not value:
        raise ValueError(f"is empty: name at least one split, or write `sizes: all`; splits are {', '.join(SPLITS)}")
    for split, size in value.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
        if isinstance(size, bool) or not isinstance(size, int | float):
            raise ValueError(f"{split}: must be a count or a share, is {size!r}; allowed are {_ALLOWED}")
        if isinstance(size, int) and size < 1:
            raise ValueError(f"{split}: a count must be greater than 0, is {size}")
        if isinstance(size, float) and not 0 < size <= 1:
            raise ValueError(f"{split}: a share must be above 0 and at most 1.0, is {size}; counts are whole numbers")
    counts = [split for split, size in value.items() if isinstance(size, int)]
    shares = [split for split, size in value.items() if isinstance(size, float)]
    if counts and shares:
        raise ValueError(
            f"{', '.join(counts)} has a count and {', '.join(shares)} a share; give only counts or only shares"
        )
    return value


Sizes = Annotated[Literal["all"] | dict[Split, int | float], BeforeValidator(_check)]
"""`all`, or split -> rows: an int is a count, a float a share."""


def are_counts(sizes: Sizes) -> bool:
    """Return whether every split has a count, so that the numbers of rows are known before any row is read."""
    return sizes != "all" and all(isinstance(size, int) for size in sizes.values())


def check_shares(sizes: Mapping[Split, int | float], of: str) -> None:
    """Check that the shares of one source are at most all of it. Counts are not checked.

    Args:
        sizes: of the splits that are drawn from the source.
        of: the source, for errors.

    Raises:
        ValueError: they add up to more than 1.
    """
    total = sum(exact(size) for size in sizes.values() if isinstance(size, float))
    if total > 1:
        raise ValueError(f"'sizes': the shares of {of} for {', '.join(sizes)} add up to {float(total):g}, above 1")


def exact(number: float) -> Fraction:
    """Return the decimal number that a user wrote, so that 0.9 + 0.05 + 0.05 is 1."""
    return Fraction(str(number))


def apportion(total: int, shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Divide `total` rows by shares, with the method of the largest remainder.

    Each gets its share, rounded down. The rows that rounding leaves go to the largest remainders, one each; of equal
    ones, to the first. Computed in fractions, so that every machine gets the same numbers.

    Args:
        total: rows to divide.
        shares: name -> share; their sum is at most 1.
    """
    wanted = {name: share * total for name, share in shares.items()}
    rows = {name: int(number) for name, number in wanted.items()}
    left = int(sum(wanted.values())) - sum(rows.values())
    for name in sorted(wanted, key=lambda name: rows[name] - wanted[name])[:left]:
        rows[name] += 1
    return rows
