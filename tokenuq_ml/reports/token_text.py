"""Examples in the terminal: response tokens coloured by value, and the tokens with the highest values as a table.

The table shows the values where rich prints no colour (a pipe, `NO_COLOR`).
"""

import polars as pl
from rich.console import Group
from rich.table import Table
from rich.text import Text

MEASURES = {"loss": "loss", "entropy": "entropy", "bald": "BALD", "selected": "selected"}
"""Columns that tokens can be coloured by -> their names in the output."""
LISTED = 8
"""Tokens of an example in the table."""
PALE, FULL = (255, 244, 242), (226, 84, 73)
"""Background of a value just above 0, and of the 95th percentile. Black text is readable on both."""
FAINT = 0.04
"""Share of the full colour below which a token is not coloured."""


def example_text(rows: pl.DataFrame, by: str, top: float, prompt: str = "", ablation: str = "") -> Group:
    """Return one example: its id and means, the prompt, the coloured tokens, and those with the highest values.

    Args:
        rows: its tokens by position, with `example_id, dataset, split, position, token, category, loss, entropy, bald,
            rank`, with `selected` (bool) for `by="selected"`, and optionally with `first_choice`.
        by: a key of `MEASURES`.
        top: the value of the full colour.
        prompt: the example's prompt.
        ablation: the ablation whose selection is shown.
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
    """Return the style of a value that is `share` of the full colour; empty if it is nearly 0 or missing."""
    if share is None or not share > FAINT:
        return ""
    share = min(share, 1.0)
    red, green, blue = (round(pale + share * (full - pale)) for pale, full in zip(PALE, FULL, strict=True))
    return f"black on #{red:02x}{green:02x}{blue:02x}"


def full_colour(tokens: pl.DataFrame, by: str) -> float:
    """Return the value of the full colour: the 95th percentile, so that a few outliers do not leave the rest pale."""
    return 1.0 if by == "selected" else max(float(tokens[by].quantile(0.95) or 0), 1e-9)


def printable(text: str) -> str:
    """Return the text with control characters replaced by �, so that a terminal does not obey them."""
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
