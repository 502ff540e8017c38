"""BALD equals that of plain PEFT with all logits: the same masks, independent masks, and repeated seeds."""

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from scipy.stats import spearmanr

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.scores import monte_carlo_scores
from tokenuq_ml.models.keyed_masks import KeyedDropout, KeyedMasks
from tokenuq_ml.scoring.mc_dropout import token_uncertainty

pytestmark = pytest.mark.slow

KEYS = ["example_id", "position"]


def plain_copy(model: PeftModel, kind: str) -> PeftModel:
    """Return the same weights in PEFT's own layers, with no module, dropout or forward pass of tokenuq."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    config.fan_in_fan_out = kind == "gpt2"
    plain = get_peft_model(tiny_model(kind), config)
    set_peft_model_state_dict(plain, get_peft_model_state_dict(model))
    return plain.eval()


def bald(logits_KNV: torch.Tensor) -> np.ndarray:
    """`H[mean p] - mean H[p]` in float64."""
    p_KNV = logits_KNV.double().softmax(-1)
    entropy = lambda p: -(p * p.log()).sum(-1)  # noqa: E731
    return (entropy(p_KNV.mean(0)) - entropy(p_KNV).mean(0)).numpy()


@torch.no_grad()
def plain_bald(model: PeftModel, rows, samples: int, mask_of) -> pl.DataFrame:
    """Compute BALD with plain PEFT, one example and pass at a time.

    `mask_of(sample, example, layer, x)` returns the factors of a layer's input.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    frames, now = [], {}
    hooks = [
        layer.lora_A["default"].register_forward_pre_hook(
            lambda _, inputs, number=number: (inputs[0] * mask_of(now["sample"], now["example"], number, inputs[0]),)
        )
        for number, layer in enumerate(layers)
    ]
    for example in rows:
        logits = []
        for sample in range(samples):
            now.update(sample=sample, example=example.example_id)
            logits_TV = model(input_ids=torch.tensor([example.input_ids])).logits[0]
            logits.append(logits_TV[[position - 1 for position in example.positions]])
        keys = {"example_id": [example.example_id] * len(example.positions), "position": example.positions}
        frames.append(pl.DataFrame({**keys, "bald": bald(torch.stack(logits))}))
    for hook in hooks:
        hook.remove()
    return pl.concat(frames).sort(KEYS)


@pytest.mark.parametrize("mask", ["sequence", "position"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_plain_peft_with_the_same_masks_gives_the_same_bald(kind, mask):
    model, rows, spec = tiny_peft(kind), examples(8), UncertaintySpec(samples=5, dropout=0.1, mask=mask)
    masks = KeyedMasks(spec)
    ours = token_uncertainty(model, rows, spec, FLOAT32).sort(KEYS)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    dropouts = [KeyedDropout(layer.in_features, masks) for layer in layers]

    def mask_of(sample, example, number, x):
        masks.start_pass(sample, [example])
        return (dropouts[number].kept(x) != 0) * dropouts[number].scale

    plain = plain_bald(plain_copy(model, kind), rows, 5, mask_of)
    assert plain.select(KEYS).equals(ours.select(KEYS).cast({"position": pl.Int64}))
    assert ours["bald"].mean() == pytest.approx(plain["bald"].mean(), rel=1e-4)
    assert spearmanr(ours["bald"], plain["bald"])[0] > 0.9999
    assert np.abs(ours["bald"] - plain["bald"]).max() < 1e-5


@pytest.mark.slow
def test_plain_peft_with_independent_masks_gives_the_same_mean_bald():
    """One feature mask per layer and sequence from PyTorch's generator: other draws from the same distribution."""
    model, rows, samples, p = tiny_peft(), examples(30), 20, 0.1
    ours = token_uncertainty(model, rows, UncertaintySpec(samples=samples, dropout=p), FLOAT32).sort(KEYS)
    plain = plain_copy(model, "llama")

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return lambda sample, example, number, x: (torch.rand(x.shape[-1], generator=generator) >= p).float() / (1 - p)

    one, two = (plain_bald(plain, rows, samples, drawn(seed)) for seed in (1, 2))
    # Tokens of an example share its masks, so the standard error of the mean is over examples.
    differences = ours.with_columns(other=one["bald"]).group_by("example_id").agg(pl.col("bald", "other").mean())
    gap = (differences["bald"] - differences["other"]).to_numpy()
    assert abs(gap.mean()) < 3 * gap.std(ddof=1) / len(gap) ** 0.5
    assert 0.8 < ours["bald"].mean() / one["bald"].mean() < 1.25
    assert spearmanr(ours["bald"], one["bald"])[0] > spearmanr(one["bald"], two["bald"])[0] - 0.03


@pytest.mark.parametrize("samples", [5, pytest.param(20, marks=pytest.mark.heavy)])
def test_the_standard_error_matches_the_spread_over_seeds(samples):
    model, rows = tiny_peft(), examples(4)
    tables = [
        token_uncertainty(model, rows, UncertaintySpec(samples=samples, dropout=0.05, seed=seed), FLOAT32).sort(KEYS)
        for seed in range(60)
    ]
    spread = np.stack([table["bald"] for table in tables]).var(0, ddof=1)
    claimed = (np.stack([table["bald_std_error"] for table in tables]) ** 2).mean(0)
    # The jackknife overestimates slightly for few samples, as for a variance.
    assert 0.8 < (claimed.mean() / spread.mean()) ** 0.5 < 1.3
    assert spearmanr(claimed, spread)[0] > 0.8


def test_the_mean_estimate_is_low_by_the_factor_of_the_docstring():
    """(K - 1) / K with K = 4, in the mean over seeds; K = 200 approximates the true value."""
    model, rows = tiny_peft(), examples(6)
    few = [
        token_uncertainty(model, rows, UncertaintySpec(samples=4, dropout=0.05, seed=seed), FLOAT32)["bald"].mean()
        for seed in range(20)
    ]
    many = token_uncertainty(model, rows, UncertaintySpec(samples=200, dropout=0.05, seed=99), FLOAT32)["bald"].mean()
    assert np.mean(few) / many == pytest.approx(3 / 4, abs=4 * np.std(few) / 20**0.5 / many)


@torch.no_grad()
def test_the_standard_error_equals_the_jackknife_for_close_samples():
    torch.manual_seed(0)
    samples, tokens, width, vocabulary = 6, 12, 16, 50
    centre, weight = torch.randn(tokens, width).double(), torch.randn(vocabulary, width).double()
    hidden_KND = centre + 1e-3 * torch.randn(samples, tokens, width).double()
    scores = monte_carlo_scores(hidden_KND, Head(weight), torch.zeros(tokens, dtype=torch.long))
    logits = hidden_KND @ weight.T
    left_out = np.stack([bald(logits[[k for k in range(samples) if k != out]]) for out in range(samples)])
    jackknife = np.sqrt((samples - 1) / samples * ((left_out - left_out.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(scores.bald_std_error_N.numpy(), jackknife, rtol=0.01)
