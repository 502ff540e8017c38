"""Examples in the terminal: their response tokens coloured by value, and the highest of them as a table.

Takes frames and gives what rich prints; where rich prints no colour (a pipe, `NO_COLOR`), the tables still tell.
Reads no file; which examples are shown is decided by the caller.
"""

import polars as pl
from rich.console import Group
from rich.table import Table
from rich.text import Text

MEASURES = {"loss": "loss", "entropy": "entropy", "bald": "BALD", "selected": "selected"}
"""What tokens can be coloured by, and how it is written."""
LISTED = 8
"""Tokens of an example that are listed with their numbers."""
PALE, FULL = (255, 244, 242), (226, 84, 73)
"""Background of a value just above 0, and of the 95th percentile: black is read on both."""
FAINT = 0.04


def example_text(rows: pl.DataFrame, by: str, top: float, prompt: str = "", ablation: str = "") -> Group:
    """One example: its id and means, the prompt, the coloured tokens, and those with the highest values.

    Args:
        rows: its tokens by position, with `example_id, dataset, split, position, token, category, loss, entropy, bald,
            rank`, with `selected` (bool) for `by="selected"`, and with `first_choice` where it is known.
        by: a key of `MEASURES`.
        top: the value that gets full colour.
        ablation: whose selection it is.
    """
    first = rows.row(0, named=True)
    head = Text.assemble((f"{first['example_id']}", "bold"), f"  {first['split']}, {len(rows)} tokens")
    means = ", ".join(f"{MEASURES[name]} {rows[name].mean():.4g}" for name in ("loss", "entropy", "bald"))
    head.append(f", mean {means} nats", "dim")
    if by == "selected":
        head.append(f"; {rows['selected'].sum()} selected{f' by {ablation}' if ablation else ''}")
    parts = [head, Text(printable(prompt), "dim")] if prompt else [head]
    body = Text()
    for token, value in rows.select(pl.col("token").cast(pl.String), pl.col(by).cast(pl.Float64)).iter_rows():
        body.append(printable(token), shade(value / top))
    return Group(*parts, Text(), body, Text(), _highest(rows, by), Text())


def shade(share: float | None) -> str:
    """The style of a value that is `share` of the full colour; none where it is nearly 0 or missing."""
    if share is None or not share > FAINT:
        return ""
    share = min(share, 1.0)
    red, green, blue = (round(pale + share * (full - pale)) for pale, full in zip(PALE, FULL, strict=True))
    return f"black on #{red:02x}{green:02x}{blue:02x}"


def full_colour(tokens: pl.DataFrame, by: str) -> float:
    """The 95th percentile of what is shown: a few outliers would leave all else pale."""
    return 1.0 if by == "selected" else max(float(tokens[by].quantile(0.95) or 0), 1e-9)


def printable(text: str) -> str:
    """The text with nothing in it that a terminal would obey: control characters are shown as �."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text)


def _highest(rows: pl.DataFrame, by: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    names = ["position", "token", "category", "loss", "entropy", "BALD", "rank"]
    for name in names:
        table.add_column(name, justify="left" if name in ("token", "category") else "right")
    if by == "selected":
        table.add_column("selected")
    if chosen := "first_choice" in rows.columns:
        table.add_column("first choice")
    order = ["selected", "loss"] if by == "selected" else [by]
    shown = rows.sort(*order, "position", descending=[*[True] * len(order), False]).head(LISTED)
    for row in shown.iter_rows(named=True):
        table.add_row(
            str(row["position"]),
            _quoted(row["token"]),
            Text(str(row["category"])),
            *(f"{row[name]:.4g}" for name in ("loss", "entropy", "bald")),
            str(row["rank"]),
            *(["yes" if row["selected"] else "no"] if by == "selected" else []),
            *([_quoted(row["first_choice"])] if chosen else []),
        )
    return table


def _quoted(token: str | None) -> Text:
    return Text("" if token is None else repr(str(token)))
