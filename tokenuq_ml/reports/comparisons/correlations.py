"""Kind `correlations`: is the loss a proxy of epistemic uncertainty, whatever the architecture?

Per study, rank correlations of loss and entropy with BALD over the tokens, raw and each given the other one. A partial
correlation that is 0 says that the loss orders tokens by BALD only as far as their entropy does. Intervals are over
examples; the difference of the two raw correlations is taken in the same bootstrap samples.
"""

from collections.abc import Sequence

import polars as pl

from tokenuq_ml.config.comparison import CorrelationsComparison
from tokenuq_ml.errors import InputError
from tokenuq_ml.reports.comparisons.correlations_plot import draw_correlations
from tokenuq_ml.reports.comparisons.found_correlation import Found, interval_text
from tokenuq_ml.reports.comparisons.inputs import ComparisonInputs
from tokenuq_ml.reports.comparisons.over_teachers import teachers_section
from tokenuq_ml.reports.comparisons.parts import Findings, Part, Picture, Section, Table, Text
from tokenuq_ml.scoring.correlations import Correlations, Statistic
from tokenuq_ml.tables.schemas import TOKEN_KEY

PLOT = "correlations.png"
RAW_LOSS, RAW_ENTROPY = Statistic("spearman", "loss", "bald"), Statistic("spearman", "entropy", "bald")
GIVEN_ENTROPY = Statistic("partial_spearman", "loss", "bald", "entropy")
GIVEN_LOSS = Statistic("partial_spearman", "entropy", "bald", "loss")
NAMES = {
    RAW_LOSS: "loss with BALD",
    RAW_ENTROPY: "entropy with BALD",
    GIVEN_ENTROPY: "loss with BALD, given entropy",
    GIVEN_LOSS: "entropy with BALD, given loss",
    Statistic("spearman", "loss", "entropy"): "loss with entropy",
    Statistic("pearson", "loss", "bald"): "loss with BALD (Pearson)",
    Statistic("pearson", "entropy", "bald"): "entropy with BALD (Pearson)",
}
DRAWN = (RAW_LOSS, RAW_ENTROPY, GIVEN_ENTROPY, GIVEN_LOSS)
DIFFERENCE = "entropy with BALD minus loss with BALD"
SCORES = ("loss", "entropy", "bald")
"""Scores whose correlation with the divergence from the truth is shown, where it is known."""
FEWEST_TOKENS = 3
VALUES = ("value", "low", "high")


def compare(inputs: ComparisonInputs[CorrelationsComparison]) -> Findings:
    """Return the correlations of every study, and how far they agree."""
    found = [one for study in inputs.studies for one in _study_correlations(inputs, study)]
    draw_correlations(found, [NAMES[one] for one in DRAWN], inputs.folder / PLOT)
    caption = "Rank correlations with BALD"
    meaning = f"Per study; bars are {inputs.spec.confidence:.0%} intervals over examples."
    truth = _truth_rows(inputs)
    over_teachers = teachers_section(inputs.studies, [*found, *_as_found(truth)], _shown(truth))
    sections = [
        Section(caption, [_table(found), Picture(PLOT, caption, meaning), Text(_note(inputs.spec), "dim")]),
        *([Section("Where the truth is known", _truth_parts(truth))] if truth else []),
        *([over_teachers] if over_teachers else []),
    ]
    return Findings(
        _verdict(found),
        sections,
        {"correlations": [one._asdict() for one in found], **({"truth": truth} if truth else {})},
        {"tokens": sum(one.tokens for one in found if one.name == DIFFERENCE)},
        {caption: PLOT},
    )


def _study_correlations(inputs: ComparisonInputs[CorrelationsComparison], study: str) -> list[Found]:
    tokens = _tokens(inputs, study)
    correlations = Correlations(tokens, inputs.spec.intervals)
    numbers = [(name, one.method, correlations.of(one)) for one, name in NAMES.items()]
    numbers.append((DIFFERENCE, "spearman", correlations.difference(RAW_ENTROPY, RAW_LOSS)))
    model, examples = inputs.studies[study].model, tokens["example_id"].n_unique()
    return [
        Found(study, model, name, method, own["value"], own["ci_low"], own["ci_high"], examples, len(tokens))
        for name, method, own in numbers
    ]


def _tokens(inputs: ComparisonInputs[CorrelationsComparison], study: str) -> pl.DataFrame:
    """Return loss, entropy and BALD of the tokens.

    Raises:
        InputError: the tables have different tokens, or too few of the split.
    """
    losses, uncertainty = inputs.scan(study, "token_losses"), inputs.scan(study, "token_uncertainty")
    if inputs.spec.split != "all":
        losses = losses.filter(pl.col("split").cast(pl.String) == inputs.spec.split)
    losses = losses.select(*TOKEN_KEY, "loss", "entropy")
    tokens = losses.join(uncertainty.select(*TOKEN_KEY, "bald", "expected_entropy"), on=TOKEN_KEY, how="left").collect()
    if tokens["bald"].null_count():
        raise InputError(
            f"study {study}: {tokens['bald'].null_count():,} tokens of token_losses are not in token_uncertainty; "
            "materialise both again"
        )
    if len(tokens) < FEWEST_TOKENS:
        raise InputError(
            f"study {study}: has {len(tokens)} tokens of split {inputs.spec.split!r}; set another 'split' of "
            f"{inputs.spec.name} in comparisons.yaml"
        )
    return tokens


def _table(found: Sequence[Found]) -> Table:
    """Return one row per study."""
    names = [*NAMES.values(), DIFFERENCE]
    rows = []
    for study in dict.fromkeys(one.study for one in found):
        own = {one.name: one for one in found if one.study == study}
        first = own[names[0]]
        rows.append(
            [study, first.model, f"{first.examples:,}", f"{first.tokens:,}", *(own[name].text for name in names)]
        )
    return Table(["study", "model", "examples", "tokens", *names], rows)


def _verdict(found: Sequence[Found]) -> str:
    """Return the range of each correlation over the studies, and in how many its interval is clear of 0."""
    sentences = []
    for name in (NAMES[one] for one in DRAWN):
        own = [one for one in found if one.name == name]
        values = [one.value for one in own if one.value is not None]
        if not values:
            sentences.append(f"{name[0].upper()}{name[1:]}: not defined in any study.")
            continue
        above, below = sum(one.sign > 0 for one in own), sum(one.sign < 0 for one in own)
        span = f"{min(values):+.2f} to {max(values):+.2f}" if len(values) > 1 else f"{values[0]:+.2f}"
        negative = f", below 0 in {below}" if below else ""
        sentences.append(f"{name[0].upper()}{name[1:]}: {span}, above 0 in {above} of {len(own)} studies{negative}.")
    differences = [one for one in found if one.name == DIFFERENCE]
    entropy, loss = sum(one.sign > 0 for one in differences), sum(one.sign < 0 for one in differences)
    count = len(differences)
    sentences.append(
        f"Entropy orders tokens more like BALD than the loss does in {entropy} of {count} studies, less in {loss}."
    )
    return " ".join(sentences)


def _truth_rows(inputs: ComparisonInputs[CorrelationsComparison]) -> list[dict]:
    """Return the rank correlation of each score with the divergence from the truth, of the trained teacher."""
    rows = []
    for study in inputs.studies:
        if not inputs.has(study, "truth_ranking"):
            continue
        ranking = inputs.read(study, "truth_ranking").with_columns(
            pl.col("split", "slot", "score", "statistic").cast(pl.String)
        )
        last = ranking.filter(
            pl.col("fraction") == pl.col("fraction").max(),
            pl.col("split") == inputs.spec.split,
            pl.col("slot") == "all",
            pl.col("statistic") == "spearman_true_kl",
            pl.col("score").is_in(SCORES),
        )
        for row in last.iter_rows(named=True):
            rows.append(
                {
                    "study": study,
                    "model": inputs.studies[study].model,
                    "score": row["score"],
                    "value": row["value"],
                    "low": row["ci_low"],
                    "high": row["ci_high"],
                }
            )
    return rows


def _as_found(truth: Sequence[dict]) -> list[Found]:
    """Return the correlations with the truth as those with BALD are held."""
    return [
        Found(row["study"], row["model"], _with_truth(row["score"]), "spearman", *(row[key] for key in VALUES), 0, 0)
        for row in truth
    ]


def _shown(truth: Sequence[dict]) -> list[str]:
    """Return the names of the correlations that are shown over teachers."""
    return [*(NAMES[one] for one in DRAWN), DIFFERENCE, *(_with_truth(score) for score in SCORES if truth)]


def _with_truth(score: str) -> str:
    return f"{score} with true KL"


def _truth_parts(rows: Sequence[dict]) -> list[Part]:
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        text = interval_text(row["value"], row["low"], row["high"])
        cells.setdefault((row["study"], row["model"]), {})[row["score"]] = text
    table = [[study, model, *(own.get(score, "—") for score in SCORES)] for (study, model), own in cells.items()]
    note = (
        "Spearman of each score with the exact divergence of the teacher from the distribution that generated the "
        "token: what epistemic uncertainty is. Intervals are those of the study's uncertainty_analysis."
    )
    return [Table(["study", "model", *map(_with_truth, SCORES)], table), Text(note, "dim")]


def _note(spec: CorrelationsComparison) -> str:
    of = "all splits" if spec.split == "all" else f"split {spec.split}"
    return (
        f"Spearman unless Pearson is named, over the response tokens of {of}, under the study's teacher; BALD is that "
        "of Monte-Carlo dropout. A partial correlation removes the linear effect of a third column's ranks from both. "
        f"{spec.confidence:.0%} intervals by a bootstrap over examples ({spec.bootstrap:,} resamples). Few dropout "
        "samples make BALD noisy, which lowers every correlation with it: compare studies with equal numbers of them."
    )
