"""Near repeats among texts: MinHash signatures of word triples, compared band by band.

datasketch does the same with a Python object per text and hash; here the signatures are a few lines of numpy, and no
dependency. Does not import torch.

Broder 1997, "On the resemblance and containment of documents".
"""

import zlib
from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

SIMILARITY = 0.8
"""Jaccard similarity of word triples from which a text is a near repeat."""
_WORDS, _BANDS, _ROWS = 3, 16, 4
"""Two texts of similarity s share a band with probability 1 - (1 - s^4)^16: 0.9998 at 0.8."""


def near_repeats(texts: Mapping[str, str], similarity: float = SIMILARITY) -> pl.DataFrame:
    """Find texts that repeat an earlier one, in the order of `texts`.

    Args:
        texts: id -> text.
        similarity: the lowest Jaccard similarity that counts.

    Returns:
        `example_id, repeat_of, similarity`, one row per repeat; of several similar texts the most similar one among
        those that share a bucket.
    """
    ids = list(texts)
    shingles = [_shingles(text) for text in texts.values()]
    best: dict[int, tuple[float, int]] = {}
    for bucket in _buckets(shingles):
        # The first and the previous member: a bucket of n texts takes n comparisons, not n².
        for place in range(1, len(bucket)):
            for other in {bucket[0], bucket[place - 1]}:
                found = _jaccard(shingles[bucket[place]], shingles[other])
                if found >= similarity and found > best.get(bucket[place], (0.0, 0))[0]:
                    best[bucket[place]] = found, other
    rows = [(ids[number], ids[other], found) for number, (found, other) in sorted(best.items())]
    schema = {"example_id": pl.String, "repeat_of": pl.String, "similarity": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _shingles(text: str) -> NDArray[np.uint64]:
    """Return the hashes of all runs of three words; of the complete text if it is shorter."""
    words = text.casefold().split()
    last = max(1, len(words) - _WORDS + 1)
    runs = {zlib.crc32(" ".join(words[start : start + _WORDS]).encode()) for start in range(last)}
    return np.array(sorted(runs), np.uint64)


def _buckets(shingles: list[NDArray[np.uint64]]) -> list[list[int]]:
    """Return the numbers of texts whose signatures agree in a band, for every band."""
    seeds = np.random.default_rng(0).integers(2**64, size=_BANDS * _ROWS, dtype=np.uint64)
    found: dict[tuple[int, bytes], list[int]] = {}
    for number, hashes in enumerate(shingles):
        signature = _mixed(hashes[:, None] + seeds).min(axis=0).reshape(_BANDS, _ROWS)
        for band in range(_BANDS):
            found.setdefault((band, signature[band].tobytes()), []).append(number)
    return [bucket for bucket in found.values() if len(bucket) > 1]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the values, mixed by SplitMix64's finaliser: a linear function would keep the order of most values."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
