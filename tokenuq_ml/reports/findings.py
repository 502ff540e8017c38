"""What a study found, in words: a first paragraph for the page, and a summary to paste.

Says only what intervals support: which families differ from the baseline, by how much, and how large a difference the
study could have seen.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from tokenuq_ml.config import REFERENCE_ROWS
from tokenuq_ml.reports.family_table import BASELINE

HEADLINES = ("true_kl", "loss")
"""Metrics of the first paragraph: of those that a dataset has, the first one; a study that knows the truth has both."""
NAMED = 3
FEW_SEEDS = 5
"""Seeds below which intervals are too narrow if seeds differ more than examples (`evaluation/paired.py`)."""
UNITS = {"true_kl": "nats per token from the true distribution", "loss": "nats per token"}


def findings(families: Sequence[dict]) -> str:
    """Return the sentences as a paragraph.

    Args:
        families: rows of `family_table.family_rows`.
    """
    return " ".join(sentences(families))


def sentences(families: Sequence[dict]) -> list[str]:
    """Return one sentence per dataset, then what the study could have seen.

    Args:
        families: rows of `family_table.family_rows`.
    """
    students = [row for row in families if row["verdict"] is not None and row["family"] not in REFERENCE_ROWS]
    if not students:
        return ["There is only one family of students, and nothing to compare it with."]
    said = [*(_sentence(rows) for rows in _headlines(students)), _other_metrics(students), _how_sure(students)]
    return [sentence for sentence in said if sentence]


def _headlines(students: Sequence[dict]) -> list[list[dict]]:
    """Return the rows of each dataset's headline metric: in distribution first, as the table has them."""
    found = []
    for key in dict.fromkeys((row["dataset"], row["split"]) for row in students):
        of_dataset = [row for row in students if (row["dataset"], row["split"]) == key]
        name = next((name for name in HEADLINES if any(row["metric"] == name for row in of_dataset)), None)
        if name is not None:
            found.append([row for row in of_dataset if row["metric"] == name])
    return found


def _sentence(rows: Sequence[dict]) -> str:
    first = rows[0]
    where = "In distribution" if first["split"] != "ood" else "Out of distribution"
    where += f" ({first['dataset']}, {first['n']:,} examples)"
    differing = sorted(
        (row for row in rows if row["verdict"] in ("better", "worse")), key=lambda row: -abs(row["difference"])
    )
    better = [row for row in differing if row["verdict"] == "better"]
    worse = [row for row in differing if row["verdict"] == "worse"]
    if not differing:
        which = f"{rows[0]['family']} is not" if len(rows) == 1 else f"none of {len(rows)} families is"
        return f"{where}, {which} distinguishable from {first['against']}."
    parts = [
        f"{_listed(group)} {'has' if len(group) == 1 else 'have'} a {word} {_noun(first)} than {first['against']}"
        for group, word in ((better, _word(first, True)), (worse, _word(first, False)))
        if group
    ]
    left = len(rows) - len(differing)
    rest = f"; {left} other{'s are' if left > 1 else ' is'} not distinguishable" if left else ""
    return f"{where}, {', and '.join(parts)}{rest}."


def _word(row: Mapping, is_better: bool) -> str:
    return "higher" if is_better is row["higher_is_better"] else "lower"


def _noun(row: Mapping) -> str:
    return {"true_kl": "divergence from the truth", "loss": "loss"}.get(row["metric"], row["metric"])


def _listed(rows: Sequence[dict]) -> str:
    named = [
        f"{row['family']} ({row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}])"
        for row in rows[:NAMED]
    ]
    more = len(rows) - NAMED
    if more > 0:
        named.append(f"{more} more")
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _other_metrics(students: Sequence[dict]) -> str:
    """Return how many differences of the other metrics can be told from 0."""
    rows = [row for row in students if row["metric"] not in HEADLINES and row["higher_is_better"] is not None]
    told = sum(row["verdict"] in ("better", "worse") for row in rows)
    if not rows:
        return ""
    metrics = len({(row["dataset"], row["metric"]) for row in rows})
    other = f"{metrics} other metric{'s' * (metrics > 1)}"
    return f"Of {len(rows)} differences on {other}, {told or 'none'} can be told from 0."


def _how_sure(students: Sequence[dict]) -> str:
    """Return how large a difference the study could have seen, and what its intervals leave out."""
    seeds = max(row["n_seeds"] for row in students)
    of_loss = [row for rows in _headlines(students) for row in rows]
    said = ""
    if of_loss:
        seen = median((row["difference_high"] - row["difference_low"]) / 2 for row in of_loss)
        said = f"Differences of less than about {seen:.2g} {UNITS[of_loss[0]['metric']]} could not have been seen"
    if seeds == 1:
        caution = "each family has one seed, so intervals leave out how much seeds differ"
    elif seeds < FEW_SEEDS:
        caution = f"with {seeds} seeds, intervals are too narrow if seeds differ more than examples do"
    else:
        caution = f"intervals are over examples and {seeds} seeds"
    return f"{said}; {caution}." if said else f"{caution[0].upper()}{caution[1:]}."


def markdown_summary(title: str, families: Sequence[dict]) -> str:
    """Return what a person can paste: the paragraph, and a table of the headline metrics, as Markdown.

    Args:
        title: the study, its model and its data.
        families: rows of `family_table.family_rows`.
    """
    students = [row for row in families if row["family"] not in REFERENCE_ROWS]
    columns = [(rows[0]["dataset"], rows[0]["split"], rows[0]["metric"]) for rows in _headlines(students)]
    against = families[0]["against"] if families else BASELINE
    heads = ["family", "seeds", *(f"{dataset} {metric}, difference to {against}" for dataset, _, metric in columns)]
    by_family: dict[str, dict] = {}
    for row in families:
        by_family.setdefault(row["family"], {})[row["dataset"], row["split"], row["metric"]] = row
    lines = [f"**{title}.** {findings(families)}", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for family, own in by_family.items():
        seeds = next(iter(own.values()))["n_seeds"]
        lines.append(f"| {' | '.join([family, str(seeds), *(_cell(own.get(column)) for column in columns)])} |")
    return "\n".join(lines)


def _cell(row: Mapping | None) -> str:
    if row is None:
        return "-"
    if row["difference"] is None:
        return f"{row['value']:.3f}"
    interval = f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
    return f"{row['value']:.3f}, {row['difference']:+.3f} {interval}"
