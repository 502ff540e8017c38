"""The parts of a comparison's page, and their rendering as HTML and as Markdown.

A kind of comparison returns parts; both pages are made from the same ones, so that they cannot differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenuq_ml.reports import html


@dataclass(frozen=True)
class Text:
    """A paragraph. `kind`: `verdict` for the answer, `dim` for notes."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table of plain text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG in the folder of the page."""

    file: str
    caption: str
    meaning: str = ""


@dataclass(frozen=True)
class Fold:
    """Parts that the page collapses under a summary line."""

    summary: str
    parts: Sequence["Part"]


Part = Text | Table | Picture | Fold


@dataclass(frozen=True)
class Section:
    """Parts under a heading."""

    heading: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Findings:
    """What a comparison has found."""

    verdict: str
    """The plain answer, first on the page, in the log and in the UI."""
    sections: Sequence[Section]
    tables: dict[str, list[dict]] = field(default_factory=dict)
    """Name -> rows with the same keys; written as `<name>.json`, `.csv` and `.parquet`."""
    metrics: dict[str, float | int | str] = field(default_factory=dict)
    """Key figures, shown in the UI."""
    plots: dict[str, str] = field(default_factory=dict)
    """Title -> a PNG in the folder of the page, shown in the UI too."""
    further: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Study -> ablations that it asks for next; `tokenuq run --comparison` makes them, and the page again."""


def as_html(parts: Sequence[Part], folder: Path) -> str:
    """Return parts as an HTML fragment, with pictures of `folder` inline. Pictures in sequence share a row."""
    fragments: list[str] = []
    row: list[str] = []
    for part in parts:
        if isinstance(part, Picture):
            row.append(html.picture(folder / part.file, part.caption, part.meaning))
            continue
        if row:
            fragments.append(html.pictures(row, wide=len(row) == 1))
            row = []
        if isinstance(part, Text):
            fragments.append(html.paragraph(part.text, part.kind))
        elif isinstance(part, Table):
            fragments.append(html.table(part.header, part.rows))
        else:
            fragments.append(html.details(part.summary, as_html(part.parts, folder)))
    if row:
        fragments.append(html.pictures(row, wide=len(row) == 1))
    return "".join(fragments)


def as_markdown(parts: Sequence[Part]) -> str:
    """Return parts as Markdown. Pictures are links to files next to the page; folds are headed by their summary."""
    blocks: list[str] = []
    for part in parts:
        if isinstance(part, Text):
            blocks.append(f"**{part.text}**" if part.kind == "verdict" else part.text)
        elif isinstance(part, Table):
            blocks.append(_markdown_table(part))
        elif isinstance(part, Picture):
            blocks.append(f"![{part.caption}]({part.file})" + (f"\n\n{part.meaning}" if part.meaning else ""))
        else:
            blocks.append(f"**{part.summary}**\n\n{as_markdown(part.parts)}")
    return "\n\n".join(blocks)


def _markdown_table(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
