"""Kind `phase_diagram`: where on a grid of label noise and rarity each family beats the baseline."""

from collections import Counter
from collections.abc import Callable, Sequence

import polars as pl

from tokenuq_ml.advice.verdicts import BEATS, UNDECIDED, VERDICTS
from tokenuq_ml.config import REFERENCE_ROWS
from tokenuq_ml.config.comparison import PhaseDiagramComparison
from tokenuq_ml.evaluation.paired import Estimate
from tokenuq_ml.reports.comparisons.inputs import ComparisonInputs
from tokenuq_ml.reports.comparisons.parts import Findings, Fold, Picture, Section, Table, Text
from tokenuq_ml.reports.comparisons.phase_cells import PhaseCell, divergences, further_seeds, phase_cells
from tokenuq_ml.reports.comparisons.phase_plot import draw_family
from tokenuq_ml.reports.comparisons.phase_regions import region

CELLS = "phase_cells"
NONE = "-"
SIGNS = {"beats": "+", "trades": "+/-", "no gain": "0", "loses": "-", "undecided": "?"}


def compare(inputs: ComparisonInputs[PhaseDiagramComparison]) -> Findings:
    """Return the heat map of every family, where each beats the baseline, and the seeds that would decide the rest."""
    cells = phase_cells(inputs)
    families = list(dict.fromkeys(cell.family for cell in cells))
    largest = (
        max(abs(cell.inside.value) for cell in cells),
        max(abs(cell.outside.value) for cell in cells),
    )
    plots, maps = {}, []
    for family in families:
        own, file = [cell for cell in cells if cell.family == family], f"phase_{family}.png"
        draw_family(own, largest, inputs.folder / file)
        plots[family] = file
        maps += [Picture(file, family, _family_sentence(own, inputs.spec.baseline)), _folded(own)]
    further = further_seeds(inputs, cells)
    counts = Counter(cell.verdict for cell in cells)
    return Findings(
        _verdict(cells, families, inputs.spec.baseline),
        [
            Section("Where to use which objective", _answer(cells, families, inputs)),
            Section("One map per family", [Text(_map_note(inputs.spec), "dim"), *maps]),
            Section("What the teacher sees of each cell", [_teacher_table(inputs)]),
            Section("How it was decided", [*_seeds(cells, families, inputs), Text(_how(inputs.spec), "dim")]),
        ],
        {CELLS: [cell.row for cell in cells]},
        {"cells": len(inputs.studies), "families": len(families), **{name: counts[name] for name in VERDICTS}},
        plots,
        further,
    )


def _verdict(cells: Sequence[PhaseCell], families: Sequence[str], baseline: str) -> str:
    """Return where each family beats the baseline at no loss out of distribution, and how much is undecided."""
    found = []
    for family in families:
        own = [cell for cell in cells if cell.family == family]
        won = [cell for cell in own if cell.verdict == BEATS]
        if won:
            found.append(f"{family} in {len(won)} of {len(own)} cells{_where(won, own)}")
    answer = "; ".join(found) or "no family in any cell"
    undecided = sum(cell.verdict == UNDECIDED for cell in cells)
    rest = f" {undecided} of {len(cells)} pairs of cell and family are undecided." if undecided else ""
    return f"Better than {baseline} in distribution at no loss out of it: {answer}.{rest}"


def _where(won: Sequence[PhaseCell], own: Sequence[PhaseCell]) -> str:
    """Return bounds of noise and rarity that hold for the won cells only, in brackets; nothing if there are none."""
    found = region({_knobs(cell) for cell in won}, {_knobs(cell) for cell in own})
    return f" ({found})" if found else ""


def _knobs(cell: PhaseCell) -> tuple[float, float]:
    return cell.noise, cell.zipf


def _answer(
    cells: Sequence[PhaseCell], families: Sequence[str], inputs: ComparisonInputs[PhaseDiagramComparison]
) -> list[Table | Text]:
    """Return the best family of each cell, and the verdicts of each family."""
    counts = [[family, *_counts(cells, family)] for family in families]
    return [
        Text(
            f"In each cell, the family with the lowest divergence of those that beat {inputs.spec.baseline}. Where "
            f"none does, use {inputs.spec.baseline}; a question mark says that some are undecided there.",
        ),
        _grid_table(cells, lambda own: _best(own, inputs.spec.baseline)),
        Table(["family", *VERDICTS, "where it beats"], counts),
    ]


def _best(own: Sequence[PhaseCell], baseline: str) -> str:
    won = sorted((cell for cell in own if cell.verdict == BEATS), key=lambda cell: cell.inside.value)
    if won:
        return f"{won[0].family} {won[0].inside.value:+.3f}"
    return f"{baseline}?" if any(cell.verdict == UNDECIDED for cell in own) else baseline


def _counts(cells: Sequence[PhaseCell], family: str) -> list[str]:
    own = [cell for cell in cells if cell.family == family]
    won = [cell for cell in own if cell.verdict == BEATS]
    where = region({_knobs(cell) for cell in won}, {_knobs(cell) for cell in own})
    counts = Counter(cell.verdict for cell in own)
    listed = ", ".join(f"noise {cell.noise:g} zipf {cell.zipf:g}" for cell in won)
    return [*(str(counts[name]) for name in VERDICTS), where or listed or NONE]


def _grid_table(cells: Sequence[PhaseCell], text: Callable[[Sequence[PhaseCell]], str]) -> Table:
    """Return one row per noise and one column per exponent, with what `text` says of the cells there."""
    noises, zipfs = sorted({cell.noise for cell in cells}), sorted({cell.zipf for cell in cells})
    rows = []
    for noise in noises:
        own = [[cell for cell in cells if _knobs(cell) == (noise, zipf)] for zipf in zipfs]
        rows.append([f"noise {noise:g}", *(text(one) if one else NONE for one in own)])
    return Table(["", *(f"zipf {zipf:g}" for zipf in zipfs)], rows)


def _family_sentence(own: Sequence[PhaseCell], baseline: str) -> str:
    counts = Counter(cell.verdict for cell in own)
    listed = ", ".join(f"{name} in {counts[name]}" for name in VERDICTS if counts[name])
    return f"Change of the divergence from the truth against {baseline}, nats per token; of {len(own)} cells: {listed}."


def _folded(own: Sequence[PhaseCell]) -> Fold:
    header = ["noise", "zipf", "seeds", "in distribution", "out of distribution", "verdict"]
    rows = [
        [
            f"{cell.noise:g}",
            f"{cell.zipf:g}",
            str(cell.seeds),
            _interval(cell.inside),
            _interval(cell.outside),
            cell.verdict,
        ]
        for cell in own
    ]
    return Fold(f"{own[0].family}: intervals of every cell", [Table(header, rows)])


def _interval(change: Estimate) -> str:
    value, low, high = change
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _seeds(
    cells: Sequence[PhaseCell], families: Sequence[str], inputs: ComparisonInputs[PhaseDiagramComparison]
) -> list[Table | Text]:
    """Return the seeds of each cell and family."""
    rows = []
    for study in inputs.studies:
        own = {cell.family: cell for cell in cells if cell.study == study}
        first = next(iter(own.values()))
        base = sum(ablation.family == inputs.spec.baseline for ablation in inputs.ablations[study].values())
        seeds = [f"{own[family].seeds} {SIGNS[own[family].verdict]}" for family in families]
        level = f"{first.baseline:.3f} / {first.ood_baseline:.3f}"
        rows.append([f"{first.noise:g}", f"{first.zipf:g}", level, str(base), *seeds])
    signs = ", ".join(f"{sign} {name}" for name, sign in SIGNS.items())
    baseline = inputs.spec.baseline
    header = ["noise", "zipf", f"{baseline}: in / out", f"{baseline}: seeds", *(f"{name}: seeds" for name in families)]
    return [Table(header, rows), Text(f"Behind the seeds: {signs}.", "dim")]


def _teacher_table(inputs: ComparisonInputs[PhaseDiagramComparison]) -> Table:
    """Return what is known of each cell without students.

    Means of the teacher's tables over the training tokens, which need no truth, and the divergences of base model and
    teacher from it.
    """
    rows = []
    for study in inputs.studies:
        losses = inputs.scan(study, "token_losses").filter(pl.col("split").cast(pl.String) == "train")
        means = losses.join(inputs.scan(study, "token_uncertainty"), on=["example_id", "position"]).select(
            pl.col("loss", "entropy", "bald", "predictive_entropy").mean(), wrong=(pl.col("rank") > 0).mean()
        )
        found = means.collect().row(0, named=True)
        knobs = inputs.knobs[study]
        share = found["bald"] / found["predictive_entropy"] if found["predictive_entropy"] else 0.0
        values = [f"{found[name]:.3f}" for name in ("loss", "entropy")]
        levels = [" / ".join(f"{value:.3f}" for value in divergences(inputs, study, row)) for row in REFERENCE_ROWS]
        own = [*values, f"{found['wrong']:.1%}", f"{share:.1%}", *levels]
        rows.append([f"{knobs['noise']:g}", f"{knobs['zipf']:g}", *own])
    header = ["loss", "entropy", "wrong tokens", "BALD of all uncertainty"]
    return Table(["noise", "zipf", *header, *(f"{row}: in / out" for row in REFERENCE_ROWS)], rows)


def _map_note(spec: PhaseDiagramComparison) -> str:
    return (
        f"Blue: less divergence from the truth than {spec.baseline}; red: more. All maps share their colours. A star "
        "marks a change whose interval does not contain 0, a frame a cell where the family beats the baseline, "
        "hatching one that is undecided."
    )


def _how(spec: PhaseDiagramComparison) -> str:
    rounds = ", ".join(map(str, spec.rounds))
    return (
        f"beats: better in distribution, and the interval out of it ends below {spec.margin:.0%} of {spec.baseline}'s "
        "divergence. trades: better in distribution, worse out of it. loses: worse in distribution. no gain: the "
        f"interval in distribution holds 0 and begins above -{spec.margin:.0%}. Seeds are added in rounds ({rounds}): "
        "a family that is decided gets no further ones. Repeated confidence intervals contain the true change at all "
        f"looks together with a probability of {spec.confidence:.0%}, over examples and seeds, per family, cell and "
        "metric: with hundreds of them, some are wrong by chance. A family is compared with the same seeds of "
        f"{spec.baseline}."
    )
