"""What `tokenuq score` writes and prints of token tables: a file, a page, a summary."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.errors import InputError
from tokenuq_ml.reports import html
from tokenuq_ml.reports.explorer import explorer
from tokenuq_ml.reports.explorer_data import ExplorerTables
from tokenuq_ml.reports.explorer_examples import MAX_EXAMPLES, means_of, within_budget
from tokenuq_ml.reports.token_text import printable
from tokenuq_ml.scoring.given_texts import TextTables
from tokenuq_ml.scoring.token_losses import N_ALTERNATIVES

WRITERS = {
    ".parquet": lambda frame, file: frame.write_parquet(file),
    ".csv": lambda frame, file: frame.write_csv(file),
    ".jsonl": lambda frame, file: frame.write_ndjson(file),
}
"""Suffix of the output -> what writes a table."""
WIDTH = 120
"""Columns of the summary where the output is no terminal."""


def write(path: str | Path | None, tokens: pl.DataFrame) -> None:
    """Write the table in the format that the suffix says; None: nothing.

    Raises:
        InputError: the suffix says no format.
    """
    if path is None:
        return
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise InputError(f"--output {path}: name a file that ends in {', '.join(WRITERS)}")
    with atomic_write(path, durable=False) as file:
        WRITERS[suffix](tokens, file)


def write_page(
    path: str | Path | None, tables: TextTables, prompts: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write the page with coloured texts, those with the highest mean loss first; None: nothing."""
    if path is None:
        return
    tokens, has_bald = tables.tokens, "bald" in tables.tokens.columns
    if not has_bald:
        tokens = tokens.with_columns(bald=pl.lit(None, pl.Float32))
    means = means_of(tokens.lazy()).sort("bald" if has_bald else "loss", "example_id", descending=[True, False])
    shown = within_budget(means.head(MAX_EXAMPLES), 0, N_ALTERNATIVES, 0)
    under = _under(facts)
    content = explorer(
        ExplorerTables(tokens.lazy(), tables.alternatives.lazy(), prompts, scored_by=under),
        shown,
        "bald" if has_bald else "loss",
    )
    left = len(means) - len(shown)
    rest = f"; {left:,} more are in the table only" if left else ""
    title = f"{len(shown):,} texts under {under}{rest}"
    with atomic_write(path, durable=False) as file:
        file.write(html.page("Tokens", title, [("Tokens", content)]).encode())


def summary(tokens: pl.DataFrame, top: int, has_adapter: bool) -> dict[str, Any]:
    """Return the figures of the summary: means, means by category, and the tokens with the highest loss.

    Args:
        tokens: the table.
        top: how many tokens are listed.
        has_adapter: whether the base model is another one.
    """
    names = ("loss", *(["base_loss"] if has_adapter else []), "entropy", "bald")
    measured = [name for name in names if name in tokens.columns]
    means = tokens.select(pl.col(measured).mean().name.prefix("mean_"), accuracy=(pl.col("rank") == 0).mean())
    by_category = tokens.group_by(pl.col("category").cast(pl.String)).agg(
        pl.len().alias("tokens"), pl.col(measured).mean()
    )
    highest = tokens.sort("loss", "example_id", "position", descending=[True, False, False]).head(top)
    listed = ["example_id", "position", "token", "category", "rank", *measured]
    figures = means.row(0, named=True)
    correlation = tokens.select(pl.corr("loss", "bald", method="spearman")).item() if "bald" in measured else None
    return {
        "tokens": len(tokens),
        **figures,
        "perplexity": math.exp(min(figures["mean_loss"], 700.0)),
        **({"loss_bald_spearman": correlation} if correlation is not None else {}),
        "by_category": by_category.sort("tokens", "category", descending=[True, False]).to_dicts(),
        "highest_loss": highest.select(pl.col(listed).name.keep())
        .with_columns(pl.col("token", "category").cast(pl.String))
        .to_dicts(),
    }


def print_summary(tokens: pl.DataFrame, facts: Mapping[str, Any], top: int, files: Mapping[str, str]) -> None:
    """Print the summary as text."""
    found, console = summary(tokens, top, bool(facts["adapter"])), Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    sources = ", ".join(f"{printable(given)} ({form})" for given, form in facts["sources"].items())
    counts = f"{facts['texts']:,} texts, {found['tokens']:,} tokens scored"
    console.print(f"{counts} under {_under(facts)}, in {facts['precision']}: {sources}")
    line = f"loss {found['mean_loss']:.4g} nats (perplexity {found['perplexity']:.4g}), "
    line += f"entropy {found['mean_entropy']:.4g}, likeliest token right {found['accuracy']:.1%}"
    if facts["adapter"]:
        line += f"; base model: loss {found['mean_base_loss']:.4g}"
    console.print(line)
    if "mean_bald" in found:
        correlation = found.get("loss_bald_spearman")
        related = "" if correlation is None else f"; its Spearman correlation with the loss is {correlation:.2f}"
        console.print(f"BALD {found['mean_bald']:.4g} nats{related}")
    if facts["texts_without_tokens_to_score"]:
        console.print(f"{facts['texts_without_tokens_to_score']:,} texts have no token to score and are left out")
    _print_rows(console, "By category", found["by_category"])
    _print_rows(console, "Highest loss", found["highest_loss"])
    for path in files.values():
        console.print(f"written: {path}", soft_wrap=True)


def _under(facts: Mapping[str, Any]) -> str:
    adapter = f" with {facts['adapter']}" if facts["adapter"] else ""
    return f"{facts['model']}{adapter}"


def _print_rows(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left", title_style="bold")
    for name, value in rows[0].items():
        table.add_column(name.replace("_", " "), justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    console.print()
    console.print(table)


def _cell(name: str, value: Any) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    return Text(repr(value) if name == "token" else printable(str(value)))
