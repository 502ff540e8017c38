"""The report page: one self-contained HTML file, made of sections, `report.css`, `page.js` and `explorer.js`.

It loads no outside resource, has a light and a dark theme, and escapes everything that comes from data. The sections
are chosen in `stages/report.py`.
"""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

HERE = Path(__file__).parent


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return the page; a section is a heading, and an HTML fragment that is already escaped."""
    body = "\n".join(
        f'<section><h2 id="s{number}">{escape(heading)}</h2>\n{content}</section>'
        for number, (heading, content) in enumerate(sections)
    )
    links = "".join(f'<a href="#s{number}">{escape(heading)}</a>' for number, (heading, _) in enumerate(sections))
    contents = f'<nav aria-label="Sections">{links}</nav>' if len(sections) > 1 else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_part('report.css')}</style></head>\n"
        f'<body><h1>{escape(title)}</h1><p class="dim">{escape(subtitle)}</p>{contents}\n<main>{body}</main>\n'
        f"<script>{_part('page.js')}</script><script>{_part('explorer.js')}</script></body></html>\n"
    )


def _part(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def summary_to_paste(markdown: str) -> str:
    """Return a fragment with a text that `page.js` copies."""
    lines = markdown.count("\n") + 4
    area = f'<textarea id="summary-text" readonly rows="{min(lines, 16)}">{escape(markdown)}</textarea>'
    return details("A summary to paste, as Markdown", f'<button id="summary-copy">Copy</button>{area}')


def verdict(sentences: Sequence[str]) -> str:
    """Return the answer of the page: one line per sentence, set off from the rest."""
    return f'<div class="verdict">{"".join(map(paragraph, sentences))}</div>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def picture(path: Path, caption: str, meaning: str) -> str:
    """Return an inline PNG, with its caption and an explanation."""
    content = path.read_bytes()
    data = base64.b64encode(content).decode()
    # With its size, the page has its layout before pictures are decoded.
    width, height = png_size(content)
    below = f"<p>{escape(meaning)}</p>" if meaning else ""
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><div class="plot"><img alt="{escape(caption, quote=True)}" '
        f'width="{width}" height="{height}" decoding="async" '
        f'src="data:image/png;base64,{data}"></div>{below}</figure>'
    )


def png_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a PNG in pixels, which its first chunk holds (https://www.w3.org/TR/png/#11IHDR)."""
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def pictures(figures: Sequence[str], wide: bool = False) -> str:
    """Return figures side by side if there is room, or below each other if `wide`."""
    return f'<div class="plots{" wide" if wide else ""}">{"".join(figures)}</div>'


def details(summary: str, content: str) -> str:
    """Return a fragment that is collapsed under a summary line."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def settings(values: dict[str, object]) -> str:
    """Return names and values in columns."""
    rows = "".join(
        f"<div><span>{escape(name)}</span><span>{escape(str(value))}</span></div>" for name, value in values.items()
    )
    return f'<div class="settings">{rows}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain text."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return scrolled(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def scrolled(table: str, kind: str = "") -> str:
    """Return a table that scrolls by itself where it is too wide; `page.js` adds a button above it.

    Args:
        table: the fragment.
        kind: `tall` if it also scrolls down, with its head in view.
    """
    return f'<div class="table"><div class="scroll{kind and f" {kind}"}">{table}</div></div>'


def tables(fragments: Sequence[str]) -> str:
    """Return tables side by side if there is room."""
    return f'<div class="tables">{"".join(fragments)}</div>'
