"""BALD from K dropout samples: ours, plain PEFT in float32 with the same masks, and K of our scoring passes.

The plain contestant is what a user writes with transformers and PEFT: the float32 model, one padded batch and one pass
at a time, logits of the full vocabulary. Our masks replace PEFT's dropout modules, so that both compute the same
numbers. Two further rows show how closely they agree.
"""

import polars as pl
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from scipy.stats import spearmanr

from benchmarks.common import LORA, Row, alternate, mixed_examples, model_folder, randomise
from benchmarks.scoring import PLAIN_BATCH, timed
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample, collate
from tokenuq_ml.models.adapters import add_adapter, freeze_adapter
from tokenuq_ml.models.dropout_passes import monte_carlo_dropout
from tokenuq_ml.models.load import load_model
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.mc_dropout import token_uncertainty, uncertainty_in_model_dtype
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.tables.schemas import TOKEN_KEY

SAMPLES = 10


def plain_peft(model: PeftModel) -> PeftModel:
    """Return a second copy of the model, with PEFT's own layers."""
    base, _ = load_model(model_folder(), "float32")
    config = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    plain = get_peft_model(base, config)
    set_peft_model_state_dict(plain, get_peft_model_state_dict(model))
    return plain.eval()


@torch.no_grad()
def plain_loop(model: PeftModel, examples: list[TokenizedExample], spec: UncertaintySpec, samples: int) -> pl.DataFrame:
    """Return BALD per token, `mean_k KL(p_k || mean p)`, from the first `samples` of the spec's samples."""
    frames = []
    with monte_carlo_dropout(model, spec) as start_pass:
        for first in range(0, len(examples), PLAIN_BATCH):
            batch, logp = collate(examples[first : first + PLAIN_BATCH]), []
            for sample in range(samples):
                start_pass(sample, [example.example_id for example in batch.examples])
                logits_BTV = model(input_ids=batch.input_ids_BT).logits
                logp.append(batch.predicting(logits_BTV).log_softmax(-1))
            logp_KNV = torch.stack(logp)
            mean_NV = logp_KNV.exp().mean(0)
            bald_N = (logp_KNV.exp() * (logp_KNV - mean_NV.log())).sum(-1).mean(0)
            frames.append(pl.DataFrame(batch.keys, schema=TOKEN_KEY, orient="row").with_columns(bald=bald_N.numpy()))
    return pl.concat(frames).sort(TOKEN_KEY)


def run(repeats: int) -> list[Row]:
    """Return rows for the times of both kinds of masks, and for the agreement with plain PEFT."""

    def ours(precision: str) -> tuple[PeftModel, Numerics]:
        base, numerics = load_model(model_folder(), precision)
        return freeze_adapter(randomise(add_adapter(base, LORA, seed=0))), numerics

    (model, numerics), (half, half_numerics) = ours("float32"), ours("bfloat16")
    examples, plain = mixed_examples(12), plain_peft(model)
    one, fresh = (UncertaintySpec(samples=SAMPLES, mask=mask) for mask in ("sequence", "position"))
    plain_once = timed(lambda: plain_loop(plain, examples, one, 1))
    seconds = alternate(
        {
            "ours": timed(lambda: token_uncertainty(model, examples, one, numerics)),
            "fresh masks": timed(lambda: token_uncertainty(model, examples, fresh, numerics)),
            "scoring": timed(lambda: [score_examples(model, examples, numerics) for _ in range(SAMPLES)]),
            "bfloat16": timed(lambda: uncertainty_in_model_dtype(half, examples, one, half_numerics)),
            # One pass is timed and counted K times.
            "plain": lambda: SAMPLES * plain_once(),
        },
        repeats,
    )
    texts = f"BALD, K={SAMPLES}, float32"
    rows = []
    for name, rival, words, target in (
        ("ours", "plain", f"one mask per sequence / {SAMPLES} float32 passes of plain PEFT, same masks", 1.0),
        ("ours", "scoring", f"one mask per sequence / {SAMPLES} float32 scoring passes of ours", 1.0),
        ("fresh masks", "scoring", f"a mask per position / {SAMPLES} float32 scoring passes of ours", None),
        ("ours", "bfloat16", "one mask per sequence / the same in bfloat16, which measures rounding", None),
    ):
        ratio = seconds[name] / seconds[rival]
        met = target is None or ratio <= target
        wanted = f"<= {target:g}" if target else "reported"
        cells = f"{seconds[name]:.1f} s", f"{seconds[rival]:.1f} s"
        rows.append(Row(f"{texts}, {words}", *cells, ratio, wanted, met))
    return [*rows, *agreement(model, plain, numerics, examples[:4])]


def agreement(model: PeftModel, plain: PeftModel, numerics: Numerics, examples: list[TokenizedExample]) -> list[Row]:
    """Return rows that compare our BALD of a few texts with plain PEFT's, from the same masks."""
    spec = UncertaintySpec(samples=SAMPLES)
    got = token_uncertainty(model, examples, spec, numerics).sort(TOKEN_KEY)
    expected = plain_loop(plain, examples, spec, SAMPLES)
    means = float(got["bald"].to_numpy().mean()), float(expected["bald"].to_numpy().mean())
    rank = float(spearmanr(got["bald"], expected["bald"])[0])
    ours, rival = (f"{mean:.4g} nats" for mean in means)
    ratio = means[0] / means[1]
    what = f"BALD of {len(got):,} tokens, same masks: ours / plain PEFT"
    return [
        Row(f"{what}, mean", ours, rival, ratio, "0.99 to 1.01", 0.99 <= ratio <= 1.01),
        Row(f"{what}, Spearman", "", "", rank, ">= 0.999", rank >= 0.999),
    ]
