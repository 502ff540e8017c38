"""BALD with K dropout samples against K scoring passes of the same texts under the same adapter: ours, and a plain
Hugging Face loop's."""

from benchmarks.common import Row, alternate, fresh_model, mixed_examples
from benchmarks.scoring import plain_loop, timed
from tokenuq_ml.mc_dropout import token_uncertainty
from tokenuq_ml.models import freeze_adapter
from tokenuq_ml.specs import UncertaintySpec
from tokenuq_ml.token_losses import score_examples

SAMPLES = 10


def run(repeats: int) -> list[Row]:
    model, numerics = fresh_model()
    model, examples = freeze_adapter(model), mixed_examples(12)
    plain = timed(plain_loop(model, numerics, examples))
    one, fresh = (UncertaintySpec(samples=SAMPLES, mask=mask) for mask in ("sequence", "position"))
    seconds = alternate(
        {
            "ours": timed(lambda: [score_examples(model, examples, numerics) for _ in range(SAMPLES)]),
            "one mask a sequence": timed(lambda: token_uncertainty(model, examples, one, numerics)),
            # One pass is timed, and counted K times.
            "Hugging Face": lambda: SAMPLES * plain(),
            "fresh masks": timed(lambda: token_uncertainty(model, examples, fresh, numerics)),
        },
        repeats,
    )
    rows = []
    for name, rival, of, target in (
        ("one mask a sequence", "ours", "scoring passes of ours", 1.0),
        ("one mask a sequence", "Hugging Face", "passes of the plain Hugging Face loop", 1.0),
        ("fresh masks", "ours", "scoring passes of ours", None),
    ):
        ratio = seconds[name] / seconds[rival]
        rows.append(
            Row(
                f"BALD, K={SAMPLES}, {name} / {SAMPLES} {of}",
                f"{seconds[name]:.1f} s",
                f"{seconds[rival]:.1f} s",
                ratio,
                f"<= {target:g}" if target else "reported",
                target is None or ratio <= target,
            )
        )
    return rows
