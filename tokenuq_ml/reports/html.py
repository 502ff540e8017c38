"""The report page: sections in, one self-contained HTML file out.

No outside resource, light and dark, everything that comes from data escaped. Knows how a
page looks; what is on it is put together in `entrypoints/report.py`, tables of results in `result_tables.py`.
"""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { --ink:#1b1f24; --dim:#5b6570; --page:#ffffff; --card:#f6f8fa; --line:#d8dee4;
  --heat:214,40,40; --mark:#0a6640; --warn:#a8321f; }
@media (prefers-color-scheme: dark) {
  :root { --ink:#e6edf3; --dim:#9aa4ae; --page:#0d1117; --card:#161b22; --line:#30363d;
    --heat:255,107,94; --mark:#56d364; --warn:#ff9b85; }
}
* { box-sizing:border-box } body { margin:0 auto; max-width:1240px; padding:32px 24px 64px; background:var(--page);
  color:var(--ink); font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif }
h1 { font-size:28px; margin:0 0 4px } h2 { font-size:20px; margin:40px 0 8px; border-top:1px solid var(--line);
  padding-top:20px } p { max-width:75ch } small, .dim { color:var(--dim) }
table { border-collapse:collapse; font-size:13.5px; font-variant-numeric:tabular-nums; margin:8px 0 }
th, td { padding:5px 9px; text-align:right; border-bottom:1px solid var(--line) } td { white-space:nowrap }
th:first-child, td:first-child { text-align:left } th { color:var(--dim); font-weight:600; vertical-align:bottom }
th.group { color:var(--ink); text-align:center; border-bottom:2px solid var(--line) }
.ablations th:not(.group) { vertical-align:top } .ablations small { font-weight:400 }
td.best, td.best small, td.better, td.better small { color:var(--mark) } td.best, td.better { font-weight:700 }
td.worse, td.worse small { color:var(--warn) }
td.same, tr.reference td:not(.better,.worse) { color:var(--dim) }
.scroll { overflow-x:auto } .tall { overflow-y:auto; max-height:82vh }
.ablations thead { position:sticky; top:0; z-index:2; background:var(--page); box-shadow:0 1px var(--line) }
.ablations tr > :first-child { position:sticky; left:0; z-index:1; background:var(--page) }
.ablations :is(td.value, th.group) { border-left:1px solid var(--line) }
details { margin:12px 0 } summary { cursor:pointer; color:var(--dim); margin-bottom:8px }
.tables { display:flex; flex-wrap:wrap; gap:8px 48px; align-items:flex-start }
.verdict { background:var(--card); border-left:4px solid var(--mark); padding:10px 14px; border-radius:4px }
.plots { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr)); gap:16px }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:8px; padding:12px }
figure img { width:100%; max-width:900px; margin:0 auto; border-radius:4px; display:block }
figcaption { margin:0 0 8px; font-weight:600 }
figure p { margin:8px 0 0; font-size:13.5px; color:var(--dim) }
.settings { display:grid; grid-template-columns:repeat(auto-fill,minmax(230px,1fr)); gap:2px 24px; font-size:13.5px }
.settings div { display:flex; justify-content:space-between; border-bottom:1px solid var(--line); padding:3px 0 }
.settings span:first-child { color:var(--dim) }
.example { margin-bottom:12px } .tokens { font-family:ui-monospace,"DejaVu Sans Mono",monospace; font-size:13.5px;
  line-height:1.75; white-space:pre-wrap; overflow-wrap:anywhere }
.tokens span { border-radius:3px; padding:1px 0 }
body[data-by=loss] .tokens span { background:rgba(var(--heat),calc(var(--loss)*.75)) }
body[data-by=entropy] .tokens span { background:rgba(var(--heat),calc(var(--entropy)*.75)) }
body[data-by=bald] .tokens span { background:rgba(var(--heat),calc(var(--bald)*.75)) }
.by button { font:inherit; padding:4px 12px; margin-right:6px; border:1px solid var(--line); border-radius:6px;
  background:var(--card); color:var(--ink); cursor:pointer } .by button[aria-pressed=true] { border-color:var(--mark);
  box-shadow:inset 0 0 0 1px var(--mark) }
"""

SCRIPT = """
document.querySelectorAll('.by button').forEach(button => button.addEventListener('click', () => {
  document.body.dataset.by = button.dataset.by;
  document.querySelectorAll('.by button').forEach(b => b.setAttribute('aria-pressed', b === button));
}));
"""


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page; each section is a heading and an HTML fragment that is escaped already."""
    body = "\n".join(f"<section><h2>{escape(heading)}</h2>\n{content}</section>" for heading, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>\n'
        f'<body data-by="loss"><h1>{escape(title)}</h1><p class="dim">{escape(subtitle)}</p>\n{body}\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def picture(path: Path, caption: str, meaning: str) -> str:
    """A PNG inline, with its caption and what it says in words."""
    data = base64.b64encode(path.read_bytes()).decode()
    below = f"<p>{escape(meaning)}</p>" if meaning else ""
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><img alt="{escape(caption, quote=True)}" '
        f'src="data:image/png;base64,{data}">{below}</figure>'
    )


def pictures(figures: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="plots">{"".join(figures)}</div>'


def details(summary: str, content: str) -> str:
    """A fragment behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def settings(values: dict[str, object]) -> str:
    """Names and values in columns."""
    rows = "".join(
        f"<div><span>{escape(name)}</span><span>{escape(str(value))}</span></div>" for name, value in values.items()
    )
    return f'<div class="settings">{rows}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def tables(fragments: Sequence[str]) -> str:
    """Tables side by side where there is room."""
    return f'<div class="tables">{"".join(fragments)}</div>'
