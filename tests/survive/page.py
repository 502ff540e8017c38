"""The page of all trials: a summary by part, then a row per trial."""

from collections.abc import Mapping

from tests.survive.trials import Record, Trial

HEAD = """\
# What tokenuq survives

`make survive` does to a tiny study what machines and people do to large ones, and compares what is left with an
undisturbed run: the data versions of all assets, and the bytes of every file but those that hold timings.

"""


def page(record: Record, wanted: Mapping[str, int]) -> str:
    """Return the page in Markdown."""
    lines = ["| part | trials | of | held | seconds |", "|---|---|---|---|---|"]
    for part, count in wanted.items():
        trials = record.trials(part)
        held = sum(trial.held for trial in trials)
        seconds = sum(trial.seconds for trial in trials)
        lines.append(f"| {part} | {len(trials)} | {count} | {held} | {seconds:,.0f} |")
    text = HEAD + "\n".join(lines) + "\n"
    for part in wanted:
        rows = [_row(trial) for trial in record.trials(part)]
        text += f"\n## {part.capitalize()}\n\n| | done | found | held |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    return text.replace(str(record.path.parent), "FOLDER")


def _row(trial: Trial) -> str:
    held = "yes" if trial.held else "**no**: " + _cell("; ".join(trial.wrong))
    return f"| {trial.number} | {_cell(trial.done)} | {_cell(trial.found)} | {held} |"


def _cell(text: str, most: int = 300) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= most else f"{text[:most]}…"
