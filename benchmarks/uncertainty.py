"""BALD with K dropout samples against K plain scoring passes of the same texts under the same adapter."""

from benchmarks.common import Row, alternate, fresh_model, mixed_examples
from benchmarks.scoring import timed
from tokenuq_ml.mc_dropout import token_uncertainty
from tokenuq_ml.models import freeze_adapter
from tokenuq_ml.specs import UncertaintySpec
from tokenuq_ml.token_losses import score_examples

SAMPLES = 10


def run(repeats: int) -> list[Row]:
    model, numerics = fresh_model()
    model, examples = freeze_adapter(model), mixed_examples(16)
    one, fresh = (UncertaintySpec(samples=SAMPLES, mask=mask) for mask in ("sequence", "position"))
    seconds = alternate(
        {
            "plain": timed(lambda: [score_examples(model, examples, numerics) for _ in range(SAMPLES)]),
            "one mask a sequence": timed(lambda: token_uncertainty(model, examples, one, numerics)),
            "fresh masks": timed(lambda: token_uncertainty(model, examples, fresh, numerics)),
        },
        repeats,
    )
    rows = []
    for name, target in (("one mask a sequence", 1.0), ("fresh masks", None)):
        ratio = seconds[name] / seconds["plain"]
        rows.append(
            Row(
                f"BALD, K={SAMPLES}, {name} / {SAMPLES} scoring passes of ours",
                f"{seconds[name]:.1f} s",
                f"{seconds['plain']:.1f} s",
                ratio,
                f"<= {target:g}" if target else "reported",
                target is None or ratio <= target,
            )
        )
    return rows
