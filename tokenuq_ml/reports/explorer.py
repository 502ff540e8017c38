"""The token explorer of the report: an HTML fragment with its frame and its data.

`explorer.js` fills the frame, and inserts text from the data only as text.
"""

import base64

import polars as pl

from tokenuq_ml.reports.explorer_data import ExplorerTables, pack

FRAME = """<noscript><p class="dim">The token explorer needs JavaScript.</p></noscript>
<div id="explorer" class="explorer" hidden>
<div class="controls">
<span class="pick"><label>Example <select id="x-example"></select></label>
<button id="x-previous" aria-label="previous example">‹</button><button id="x-next" aria-label="next example">›</button>
</span>
<span class="by" role="group" aria-label="colour by"><button data-by="loss">loss</button><button
data-by="entropy">entropy</button><button data-by="bald">BALD</button><button
data-by="selected">selected at step</button><button data-by="difference">difference</button></span>
<span id="x-selected" hidden><label>by <select id="x-ablation"></select></label>
<label>at <select id="x-step"></select></label></span>
<span id="x-difference" hidden><label>loss under <select id="x-left"></select></label>
<label>less that under <select id="x-right"></select></label></span>
</div>
<p id="x-legend" class="legend" aria-live="polite"></p>
<div id="x-prompt" class="prompt"></div>
<div id="x-tokens" class="tokens" tabindex="0" aria-label="response tokens"></div>
<div id="x-tip" class="tip" role="tooltip" hidden></div>
</div>"""


def explorer(tables: ExplorerTables, examples: pl.DataFrame, by: str = "loss") -> str:
    """Return the fragment: controls, an empty frame, and the data. `html.page` adds script and style.

    Args:
        tables: what is shown.
        examples: the examples to show, in order; columns of `means_of`.
        by: what tokens are coloured by at first: loss, entropy, bald, selected or difference.
    """
    data = base64.b64encode(pack(tables, examples, by)).decode()
    return f'{FRAME}<script type="application/octet-stream" id="explorer-data">{data}</script>'
