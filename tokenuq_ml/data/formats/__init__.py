"""Row formats: one module per format, each with a parser from a row to an example; `FORMATS` lists them.

Two formats have no rows of their own: `reasoning_gym` generates examples, and `mix` takes those of other datasets
(`data/mix.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenuq_ml.data.formats import (
    alpaca,
    alpaca_eval,
    dolly,
    gsm8k,
    ifeval,
    messages,
    prompt_completion,
    raw_text,
    sharegpt,
)
from tokenuq_ml.data.formats.row import Row
from tokenuq_ml.data.sources.records import ParsedRow


@dataclass(frozen=True)
class Format:
    """How a row becomes an example."""

    parse: Callable[[Row], ParsedRow]
    numbered_by_line: bool = False
    """Whether example ids count lines of the file; if not, they count rows."""
    stores_location: bool = True
    """Whether the example's `source` says where the row is."""


FORMATS = {
    "alpaca": Format(alpaca.parse),
    "sharegpt": Format(sharegpt.parse),
    "gsm8k": Format(gsm8k.parse),
    "dolly": Format(dolly.parse),
    "messages": Format(messages.parse, numbered_by_line=True),
    "prompt_completion": Format(prompt_completion.parse),
    "raw_text": Format(raw_text.parse),
    "alpaca_eval": Format(alpaca_eval.parse),
    "ifeval": Format(ifeval.parse, numbered_by_line=True, stores_location=False),
}
