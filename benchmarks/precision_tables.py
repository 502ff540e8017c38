"""Print the tables of docs/results/precision.md: `python -m benchmarks.precision_tables FOLDER`.

FOLDER holds what `precision_study.py` wrote. Needs no model.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import rankdata, spearmanr

from benchmarks.precision_study import COUNTS, DROPOUTS, MASKS, OFF, PRECISIONS, SAMPLES
from tokenuq_ml.tables.schemas import TOKEN_KEY

QUARTER = 0.25


class Study:
    """The frames that `precision_study.py` wrote. Each is sorted by token."""

    def __init__(self, folder: Path):
        self.folder, self.about = folder, json.loads((folder / "figures.json").read_text())

    def losses(self, precision: str) -> pl.DataFrame:
        """Return losses, entropies and ranks in a precision."""
        return pl.read_parquet(self.folder / f"losses-{precision}.parquet")

    def bald(self, precision: str, mask: str, dropout: float, count: int, group: int = 0) -> pl.DataFrame:
        """Return the uncertainty from one group of `count` samples."""
        return pl.read_parquet(self.folder / f"bald-{precision}-{mask}-{dropout}-{count}-{group}.parquet")

    def repeats(self, precision: str, mask: str, dropout: float, count: int) -> list[np.ndarray]:
        """Return BALD from each disjoint group of `count` samples."""
        frames = (self.bald(precision, mask, dropout, count, group) for group in range(SAMPLES // count))
        return [frame["bald"].to_numpy() for frame in frames]


def rank_correlation(a, b) -> float:
    """Return Spearman's rank correlation."""
    return float(spearmanr(a, b)[0])


def partial(x, y, given) -> float:
    """Return the partial rank correlation of x and y, given a third variable."""
    xy, xz, yz = (rank_correlation(*pair) for pair in ((x, y), (x, given), (y, given)))
    return (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5


def shared_quarter(a, b) -> float:
    """Return the share of the top quarter by `a` that is also in the top quarter by `b`."""
    count = -(-len(a) // 4)
    tops = (set(np.argsort(-np.asarray(one), kind="stable")[:count].tolist()) for one in (a, b))
    return len(set.intersection(*tops)) / count


def table(heading: str, columns: list[str], rows: list[list]) -> str:
    """Return a Markdown table under its heading."""
    lines = [heading, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def losses(study: Study) -> str:
    """Return the table of losses and entropies against float64."""
    truth, rows = study.losses("float64"), []
    for precision in PRECISIONS:
        got = study.losses(precision)
        loss, entropy = (got[name].to_numpy() - truth[name].to_numpy() for name in ("loss", "entropy"))
        rows.append(
            [
                precision,
                f"{np.abs(loss).mean():.2g}",
                f"{np.abs(loss).max():.2g}",
                f"{loss.mean():+.1g}",
                f"{np.abs(entropy).mean():.2g}",
                f"{entropy.mean():+.1g}",
                f"{(got['rank'] == truth['rank']).mean():.2%}",
                f"{shared_quarter(got['loss'], truth['loss']):.1%}",
                f"{shared_quarter(got['entropy'], truth['entropy']):.1%}",
                f"{study.about['seconds'][f'losses-{precision}']:.1f} s",
            ]
        )
    columns = ["precision", "loss off by", "at most", "in the mean", "entropy off by", "in the mean", "ranks equal"]
    columns += ["same quarter by loss", "by entropy", "one pass"]
    return table("Losses and entropies against float64", columns, rows)


def against_float64(study: Study) -> str:
    """Return the table of BALD against float64 with the same masks."""
    rows = []
    for mask in MASKS:
        truth = study.bald("float64", mask, 0.1, 10)
        for precision in PRECISIONS:
            both = truth.join(study.bald(precision, mask, 0.1, 10), on=TOKEN_KEY, suffix="_got")
            want, got = both["bald"].to_numpy(), both["bald_got"].to_numpy().astype(float)
            floor = np.abs(want - got).mean()
            aleatoric = (both["expected_entropy_got"] - both["expected_entropy"]).abs().mean()
            rows.append(
                [
                    mask,
                    precision,
                    f"{len(both):,}",
                    f"{want.mean():.3g}",
                    f"{got.mean():.3g}",
                    f"{floor:.2g}",
                    f"{floor / got.mean():.2%}",
                    f"{rank_correlation(want, got):.6f}",
                    f"{shared_quarter(got, want):.1%}",
                    f"{aleatoric:.1g}",
                    f"{shared_quarter(both['expected_entropy_got'], both['expected_entropy']):.1%}",
                ]
            )
    columns = ["masks", "precision", "tokens", "mean in float64", "mean", "noise floor", "of the mean"]
    columns += ["Spearman", "same quarter", "expected entropy off by", "its quarter"]
    return table("BALD against float64, the same masks, K = 10, dropout 0.1", columns, rows)


def main_rows(study: Study) -> Iterator[list]:
    """Yield a row per kind of mask, dropout rate and number of samples: signal, sampling noise and rounding."""
    for mask in MASKS:
        for dropout in DROPOUTS:
            for count in COUNTS:
                single, half = (study.bald(precision, mask, dropout, count) for precision in PRECISIONS)
                a, b = single["bald"].to_numpy(), half["bald"].to_numpy()
                repeats = study.repeats("float32", mask, dropout, count)
                pairs = list(zip(repeats[::2], repeats[1::2], strict=False))
                again = np.mean([rank_correlation(*pair) for pair in pairs]) if pairs else None
                same = np.mean([shared_quarter(*pair) for pair in pairs]) if pairs else None
                error = np.sqrt((single["bald_std_error"].to_numpy() ** 2).mean())
                yield [
                    mask,
                    dropout,
                    count,
                    f"{np.mean(repeats) * 1e4:.3f}",
                    f"{b.mean() * 1e4:.2f}",
                    f"{b.mean() / a.mean():.1f}",
                    f"{a.std() * 1e4:.2f}",
                    f"{error * 1e4:.2f}",
                    f"{(b - a).std() * 1e4:.2f}",
                    "" if again is None else f"{again:.3f}",
                    f"{rank_correlation(a, b):.3f}",
                    "" if same is None else f"{same:.0%}",
                    f"{shared_quarter(a, b):.0%}",
                ]


def main_table(study: Study) -> str:
    """Return the table of `main_rows`."""
    columns = [
        "masks",
        "dropout",
        "K",
        "BALD, float32",
        "BALD, bfloat16",
        "ratio",
        "spread of tokens",
        "sampling error",
    ]
    columns += ["rounding", "Spearman, other masks", "Spearman, bfloat16", "same quarter, other masks", "bfloat16"]
    return table("BALD, 1e-4 nats per token", columns, list(main_rows(study)))


def nothing_dropped(study: Study) -> str:
    """Return the table of mean BALD at a dropout rate so low that what is measured in bfloat16 is rounding."""
    rows = []
    for mask in MASKS:
        means = [study.bald(precision, mask, OFF, 10)["bald"].mean() for precision in PRECISIONS]
        rows.append([mask, *(f"{mean:.2g}" for mean in means)])
    return table(f"Mean BALD at dropout {OFF}, K = 10", ["masks", *PRECISIONS], rows)


def standard_errors(study: Study) -> str:
    """Return the table of `bald_std_error` against the spread over independent groups of samples."""
    rows = []
    for mask, dropout, count in ((m, d, k) for m in MASKS for d in DROPOUTS for k in COUNTS[:-1]):
        repeats = np.stack(study.repeats("float32", mask, dropout, count)).astype(float)
        errors = [
            study.bald("float32", mask, dropout, count, group)["bald_std_error"].to_numpy().astype(float)
            for group in range(len(repeats))
        ]
        claimed, seen = np.sqrt(np.square(errors).mean()), np.sqrt(repeats.var(0, ddof=1).mean())
        cells = f"{claimed * 1e4:.2f}", f"{seen * 1e4:.2f}", f"{claimed / seen:.2f}"
        rows.append([mask, dropout, count, len(repeats), *cells])
    columns = ["masks", "dropout", "K", "groups", "claimed, 1e-4 nats", "seen, 1e-4 nats", "ratio"]
    return table("bald_std_error against the spread over disjoint groups of samples", columns, rows)


def bias_of_few_samples(study: Study) -> str:
    """Return the table of mean BALD from few samples, relative to the most."""
    few, most = COUNTS[:-1], COUNTS[-1]
    rows = []
    for mask in MASKS:
        for dropout in DROPOUTS:
            mean = {count: np.mean(study.repeats("float32", mask, dropout, count)) for count in COUNTS}
            rows.append([mask, dropout, *(f"{mean[count] / mean[most]:.3f}" for count in few)])
    expected = (f"{(count - 1) / count / ((most - 1) / most):.3f}" for count in few)
    rows.append([f"(K-1)/K over {most - 1}/{most}", "", *expected])
    columns = ["masks", "dropout", *(f"K = {count} / K = {most}" for count in few)]
    return table("Mean BALD of few samples", columns, rows)


def correlations(study: Study) -> str:
    """Return the table of rank correlations between loss, entropy and BALD."""
    rows = []
    for mask, dropout, count in [("sequence", 0.1, count) for count in COUNTS] + [
        ("position", 0.1, 40),
        ("sequence", 0.05, 40),
        ("sequence", 0.2, 40),
    ]:
        for tables, passes in (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")):
            scored, sampled = study.losses(tables), study.bald(passes, mask, dropout, count)
            loss, entropy, bald = scored["loss"], scored["entropy"], sampled["bald"]
            rows.append(
                [
                    mask,
                    dropout,
                    count,
                    tables,
                    passes,
                    f"{rank_correlation(loss, bald):.3f}",
                    f"{rank_correlation(entropy, bald):.3f}",
                    f"{rank_correlation(loss, sampled['expected_entropy']):.3f}",
                    f"{partial(rankdata(loss), rankdata(bald), rankdata(entropy)):.3f}",
                ]
            )
    columns = ["masks", "dropout", "K", "losses in", "BALD in", "loss, BALD", "entropy, BALD"]
    columns += ["loss, expected entropy", "loss, BALD given entropy"]
    return table("Rank correlations", columns, rows)


def correlations_in_float64(study: Study) -> str:
    """Return the table of rank correlations on the tokens that were also scored in float64."""
    rows = []
    for mask in MASKS:
        for precision in ("float64", *PRECISIONS):
            sampled = study.bald("float64", mask, 0.1, 10).select(TOKEN_KEY)
            for frame in (study.losses(precision), study.bald(precision, mask, 0.1, 10)):
                sampled = sampled.join(frame, on=TOKEN_KEY)
            loss, entropy, bald = sampled["loss"], sampled["entropy"], sampled["bald"]
            values = rank_correlation(loss, bald), rank_correlation(entropy, bald), partial(loss, bald, entropy)
            rows.append([mask, precision, f"{len(sampled):,}", *(f"{value:.4f}" for value in values)])
    columns = ["masks", "losses and BALD in", "tokens", "loss, BALD", "entropy, BALD", "loss, BALD given entropy"]
    return table("Rank correlations on the tokens of the float64 sample, K = 10, dropout 0.1", columns, rows)


def main() -> None:
    """Print all tables."""
    study = Study(Path(sys.argv[1]))
    print(study.about)
    for part in (
        losses,
        against_float64,
        main_table,
        nothing_dropped,
        standard_errors,
        bias_of_few_samples,
        correlations,
        correlations_in_float64,
    ):
        print(part(study))


if __name__ == "__main__":
    main()
