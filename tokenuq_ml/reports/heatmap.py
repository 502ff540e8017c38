"""Token heatmap: the response tokens of a few examples, coloured by loss, entropy or BALD.

HTML fragments with the numbers in tooltips; all text is escaped. Which examples are worth a
look is decided here, nothing else.
"""

from html import escape

import polars as pl

MEASURES = ("loss", "entropy", "bald")
MOST_TOKENS = 400
"""Of one example: a page of long answers would be slow to open."""


def most_uncertain(tokens: pl.DataFrame, count: int) -> list[str]:
    """Ids of the examples of validation and test with the highest mean BALD."""
    held_out = tokens.filter(pl.col("split").cast(pl.String).is_in(["validation", "test"]))
    return (
        held_out.group_by("example_id")
        .agg(pl.col("bald").mean())
        .sort("bald", "example_id", descending=[True, False])
        .head(count)["example_id"]
        .to_list()
    )


def heatmap(tokens: pl.DataFrame, example_ids: list[str]) -> str:
    """One block an example; a token's colours for the three measures are CSS variables, the page picks one."""
    # The 95th percentile is full colour: a few outliers would leave all else pale.
    tops = {measure: max(float(tokens[measure].quantile(0.95) or 0), 1e-9) for measure in MEASURES}
    blocks = []
    for example_id in example_ids:
        rows = tokens.filter(pl.col("example_id") == example_id).sort("position")
        spans = "".join(_span(row, tops) for row in rows.head(MOST_TOKENS).iter_rows(named=True))
        if len(rows) > MOST_TOKENS:
            spans += f"<small> … {len(rows) - MOST_TOKENS:,} more tokens</small>"
        split = escape(str(rows["split"][0]))
        blocks.append(
            f'<figure class="example"><figcaption>{escape(example_id)} <small>{split}, mean BALD '
            f'{rows["bald"].mean():.4f} nats</small></figcaption><div class="tokens">{spans}</div></figure>'
        )
    return "\n".join(blocks)


def _span(row: dict, tops: dict[str, float]) -> str:
    shades = ";".join(f"--{measure}:{min(row[measure] / tops[measure], 1):.2f}" for measure in MEASURES)
    title = (
        f"{row['token']!r} ({row['category']}) loss {row['loss']:.3f}, entropy {row['entropy']:.3f}, "
        f"BALD {row['bald']:.5f}, rank {row['rank']}"
    )
    text = escape(row["token"]).replace("\n", "↵<br>")
    return f'<span style="{shades}" title="{escape(title, quote=True)}">{text}</span>'
