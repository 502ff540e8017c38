"""The report's section about the truth: divergence of the families, and what ranks tokens by what is left to learn.

Only studies on a synthetic language have it.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tokenuq_ml.reports import canvas, html, plots
from tokenuq_ml.reports.result_tables import family_table

DIVERGENCE_PLOT, RANKING_PLOT = "id_vs_ood_true_kl.png", "truth_ranking.png"
SPLITS = {
    "train": "tokens that selections choose from",
    "test": "in distribution",
    "ood": "out of distribution",
}
"""Splits that are shown, with what they are."""
COLUMNS = {
    "spearman_true_kl": "Spearman with divergence",
    "spearman_true_entropy": "with true entropy",
    "auroc_top_quarter": "AUROC of its top quarter",
    "top_quarter_share": "divergence in the top quarter",
}
"""Statistic -> its heading."""
DRAWN = ("loss", "entropy", "base_loss", "loss_fall", "bald", "aleatoric")
NOTE = (
    "The truth is the distribution that generated each token. A score of epistemic uncertainty should rank tokens by "
    "their divergence from it, and not by its entropy. The last column is the share of all divergence in the quarter "
    "of tokens with the highest score; that of true_kl is the best possible. At 0% the model is the base model, which "
    "has no BALD."
)


def truth(families: Sequence[dict], slots: Sequence[dict], ranking: pl.DataFrame, folder: Path) -> str:
    """Return the section, and write its plots.

    Args:
        families: rows of the family table.
        slots: rows like these, of metrics of a slot.
        ranking: the table `truth_ranking`.
        folder: of the plots.
    """
    divergences = pl.DataFrame(families, infer_schema_length=None).rename({"family": "model"})
    figures = []
    if len(divergences.filter(split="ood", metric="true_kl")):
        plots.id_vs_ood(divergences, folder / DIVERGENCE_PLOT, metric="true_kl")
        figures.append(
            html.picture(
                folder / DIVERGENCE_PLOT,
                "Divergence from the truth",
                "KL(truth || model) per response token, exact, label noise included. 0 is a model that knows the "
                "language.",
            )
        )
    overall = ranking.filter(slot="all")
    _draw(overall, folder / RANKING_PLOT)
    figures.append(
        html.picture(
            folder / RANKING_PLOT,
            "Scores over the teacher's training",
            "Train split: rank correlation of each score with the divergence, which training can remove, and with the "
            "entropy of the truth, which it cannot.",
        )
    )
    return (
        html.pictures(figures)
        + (html.details("Divergence by slot", family_table(slots)) if slots else "")
        + _tables(overall)
    )


def _tables(overall: pl.DataFrame) -> str:
    """Return a table per split of the trained teacher, and of earlier steps in a fold."""
    fractions = overall["fraction"].unique().sort(descending=True).to_list()
    content = html.paragraph(NOTE, "dim")
    for number, fraction in enumerate(fractions):
        at = overall.filter(fraction=fraction)
        fragments = [
            html.table([f"{split}: {meaning}", *COLUMNS.values()], _rows(at.filter(split=split)))
            for split, meaning in SPLITS.items()
            if len(at.filter(split=split))
        ]
        tables = html.tables(fragments)
        content += tables if number == 0 else html.details(f"After {fraction:.0%} of the teacher's training", tables)
    return content


def _rows(rows: pl.DataFrame) -> list[list[str]]:
    """Return one row per score, the one with the highest correlation first."""
    of_score: dict[str, dict[str, dict]] = {}
    for row in rows.iter_rows(named=True):
        of_score.setdefault(row["score"], {})[row["statistic"]] = row
    order = sorted(of_score, key=lambda score: -(of_score[score]["spearman_true_kl"]["value"] or -1.0))
    return [[score, *(_cell(of_score[score][statistic]) for statistic in COLUMNS)] for score in order]


def _cell(row: dict) -> str:
    if row["value"] is None:
        return "—"
    interval = "" if row["ci_low"] is None else f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    return f"{row['value']:.3f}{interval}"


def _draw(overall: pl.DataFrame, path: Path) -> None:
    """Draw both rank correlations of each score over the teacher's training, on the train split."""
    rows = overall.filter(split="train").sort("fraction")
    figure, axes = canvas.new_figure(3.6, columns=2)
    styles = canvas.series_styles(DRAWN)
    for axis, statistic in zip(axes, ("spearman_true_kl", "spearman_true_entropy"), strict=True):
        for score in DRAWN:
            own = rows.filter(score=score, statistic=statistic).drop_nulls("value")
            if len(own):
                axis.plot(own["fraction"] * 100, own["value"], label=score, **styles[score])
        axis.set(xlabel="teacher's training done, %", ylabel=f"Spearman with {statistic.removeprefix('spearman_')}")
    canvas.legend(figure, *axes[0].get_legend_handles_labels())
    canvas.save(figure, path)
