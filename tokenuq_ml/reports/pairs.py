"""The picker of the report that compares any two families: an HTML fragment, and the data that `page.js` shows.

Intervals of all pairs are computed when the report is made, by the paired bootstrap: those of two families do not
follow from their intervals to the baseline.
"""

import json
from collections.abc import Iterable
from itertools import combinations

from tokenuq_ml.reports.family_table import Comparison

DIGITS = 5
FRAME = """<div id="pairs" class="pairs" hidden><div class="controls">
<label>Compare <select id="p-left"></select></label> <label>with <select id="p-right"></select></label></div>
<div class="table"><div id="p-table" class="scroll" aria-live="polite"></div></div></div>
<noscript><p class="dim">Comparing two families needs JavaScript.</p></noscript>"""


def pair_data(compared: Iterable[Comparison]) -> dict:
    """Return the families, and of each metric the values and the differences of all pairs, with their intervals.

    A metric has `values`: family number -> value, and `pairs`: `"i,j"` with i < j -> difference of family i to j, low,
    high.
    """
    compared = list(compared)
    families = list(dict.fromkeys(family for one in compared for family in one.members))
    number = {family: index for index, family in enumerate(families)}
    metrics = []
    for (dataset, split, metric), higher_is_better, members, bootstrap, n in compared:
        metrics.append(
            {
                "dataset": dataset,
                "split": split,
                "metric": metric,
                "higher_is_better": higher_is_better,
                "n": n,
                "values": {number[family]: round(bootstrap.mean(family).value, DIGITS) for family in members},
                "pairs": {
                    f"{number[left]},{number[right]}": [round(x, DIGITS) for x in bootstrap.difference(left, right)]
                    for left, right in combinations(members, 2)
                },
            }
        )
    return {"families": families, "metrics": metrics}


def picker(compared: Iterable[Comparison]) -> str:
    """Return the fragment; `page.js` fills it."""
    data = json.dumps(pair_data(compared), separators=(",", ":")).replace("<", "\\u003c")
    return f'{FRAME}<script type="application/json" id="pairs-data">{data}</script>'
