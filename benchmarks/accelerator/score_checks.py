"""Scores, masks, layers and selection against float64, or against the same on the CPU where integers must agree.

Shapes: N response tokens, D hidden size, V vocabulary, K samples, S possible ids, B sequences, T positions.
"""

from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.accelerator import references
from benchmarks.accelerator.references import Case, relative_error
from benchmarks.accelerator.specs import QUANTILE, UNCERTAINTY
from tokenuq_ml.kernels.block_divergence import BlockDivergence
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.scores import (
    MonteCarloScores,
    monte_carlo_scores,
    sampled_head_scores,
    token_losses,
    token_scores,
)
from tokenuq_ml.kernels.training_loss import TeacherTerm
from tokenuq_ml.kernels.true_distributions import TrueDistributions
from tokenuq_ml.models.keyed_masks import KeyedMasks
from tokenuq_ml.models.lora_dropout import use_bit_mask_dropout
from tokenuq_ml.models.lora_linear import use_fused_lora
from tokenuq_ml.training.selection import extreme_quantile

ErrorsOf = Callable[[torch.device, torch.dtype], dict[str, float]]


def scores(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check loss, entropy, rank and the likeliest tokens."""
    case = Case.draw(device, dtype)
    wanted_N = torch.ones_like(case.label_N, dtype=torch.bool)
    got = token_scores(case.hidden_ND, case.head, case.label_N, choices=3, wanted_N=wanted_N)
    z_NV, logp_NV, loss_N = _exact(case)
    rank_N = (z_NV > z_NV.gather(1, case.label_N[:, None])).sum(1)
    assert got.probability_MA is not None
    return {
        "loss": relative_error(got.loss_N, loss_N),
        "entropy": relative_error(got.entropy_N, references.entropy(logp_NV)),
        "rank": relative_error(got.rank_N, rank_N),
        "likeliest": relative_error(got.probability_MA, logp_NV.topk(3).values.exp()),
    }


def losses(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check losses alone, under a head with soft cap, scale and bias."""
    case = Case.draw(device, dtype, softcap=5.0, scale=0.5, bias=True)
    return {"loss": relative_error(token_losses(case.hidden_ND, case.head, case.label_N), _exact(case)[2])}


def embeddings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check mean embeddings: the head's weights, averaged by each token's distribution."""
    case, head = Case.draw(device, dtype), Case.draw(device, dtype).exact().head
    got = mean_embeddings(case.hidden_ND, case.head, case.label_N)
    z_NV, logp_NV, loss_N = _exact(case)
    assert got.loss_N is not None
    return {
        "mean": relative_error(got.mean_ND, logp_NV.exp() @ head.weight_VD),
        "log-sum-exp": relative_error(got.lse_N, torch.logsumexp(z_NV, -1)),
        "loss": relative_error(got.loss_N, loss_N),
    }


def bald(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check BALD and entropies of samples of the states."""
    case = Case.draw(device, dtype)
    exact = case.exact()
    z_KNV = torch.stack([references.logits(exact.head, one_ND.double()) for one_ND in case.samples_KND])
    return _monte_carlo_errors(monte_carlo_scores(case.samples_KND, case.head, case.label_N), z_KNV, case.label_N)


def bald_of_heads(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check BALD and entropies of samples of the head's weight."""
    case = Case.draw(device, dtype)
    noise_VD = Case.draw(device, dtype, bias=True).head.weight_VD.flip(0)
    weight_KVD = torch.stack([torch.lerp(case.head.weight_VD, noise_VD, 0.1 * k) for k in range(references.K)])
    z_KNV = torch.stack([case.hidden_ND.double() @ weight_VD.double().T for weight_VD in weight_KVD])
    got = sampled_head_scores(case.hidden_ND, case.head, weight_KVD, case.label_N)
    return _monte_carlo_errors(got, z_KNV, case.label_N)


def _monte_carlo_errors(got: MonteCarloScores, z_KNV: Tensor, label_N: Tensor) -> dict[str, float]:
    logp_KNV = torch.log_softmax(z_KNV, -1)
    log_mean_NV = logp_KNV.exp().mean(0).log()
    bald_N = torch.stack([references.kl(logp_NV, log_mean_NV) for logp_NV in logp_KNV]).mean(0)
    return {
        "BALD": relative_error(got.bald_N, bald_N),
        "predictive entropy": relative_error(got.predictive_entropy_N, references.entropy(log_mean_NV)),
        "loss": relative_error(got.mc_loss_N, references.label_loss(log_mean_NV, label_N)),
    }


def block_divergence(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check the divergence that selection reads, from logits that are known, for both forms of a teacher."""
    case, found = Case.draw(device, dtype), {}
    exact = case.exact()
    z_NV, _, _ = _exact(case)
    teacher_NV = references.logits(exact.head, exact.teacher_ND)
    expected_N = references.divergence("forward_kl", z_NV, teacher_NV, 1.0, None)
    means = mean_embeddings(case.teacher_ND, case.head).states(case.teacher_ND)
    for name, states in (("hidden states", TeacherStates(case.teacher_ND)), ("mean embeddings", means)):
        divergence = BlockDivergence(case.hidden_ND, case.head, TeacherTerm(states))
        blocks = (slice(0, 19), slice(19, references.N))
        logits = [case.head.finish(case.head.product(case.hidden_ND[rows])) for rows in blocks]
        parts = [divergence.of(rows, z_RV) for rows, z_RV in zip(blocks, logits, strict=True)]
        found[name] = relative_error(torch.cat(parts), expected_N)
    return found


def true_divergence(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check the divergence from known distributions over some ids."""
    case, generator = Case.draw(device, dtype), torch.Generator().manual_seed(1)
    ids = [torch.randperm(case.head.vocabulary, generator=generator)[:7] for _ in range(references.N)]
    support_NS = torch.stack(ids)
    weights = (torch.rand(references.N, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    noisy_NS, clean_NS = (weight_NS / weight_NS.sum(1, keepdim=True) for weight_NS in weights)
    truth = TrueDistributions(support_NS, noisy_NS, clean_NS, torch.ones(references.N, dtype=torch.bool)).to(device)
    got = token_scores(case.hidden_ND, case.head, case.label_N, truth=truth)
    logp_NV = _exact(case)[1]
    picked_NS = logp_NV.gather(1, truth.support_NS)
    expected_N = (truth.probability_NS * (truth.probability_NS.log() - picked_NS)).sum(1)
    assert got.true_kl_N is not None
    return {"divergence": relative_error(got.true_kl_N, expected_N)}


def keyed_masks(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check that masks of Monte-Carlo dropout are the CPU's, bit for bit, whichever the device."""
    found = {}
    for mask in ("sequence", "position"):
        kept = []
        for where in (torch.device("cpu"), device):
            masks = KeyedMasks(_with_mask(mask), where)
            layer, features = masks.add_layer(70)
            masks.start_pass(3, ["a", "b"])
            one = masks.per_sequence(features) if mask == "sequence" else masks.per_position(layer, 5, 70)
            kept.append(one.cpu())
        found[f"mask per {mask}"] = 0.0 if torch.equal(*kept) else 1.0
    return found


def _with_mask(mask: str):
    return type(UNCERTAINTY)(**{**vars(UNCERTAINTY), "mask": mask})


def selection(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check that the tokens of a quantile are the CPU's, with ties."""
    score_N = (torch.randn(references.N, generator=torch.Generator().manual_seed(2)) * 4).round().to(dtype)
    found = {}
    for keep in ("top", "bottom"):
        ours, cpus = (extreme_quantile(score_N.to(where), QUANTILE, keep).cpu() for where in (device, "cpu"))
        found[keep] = float((ours != cpus).double().mean())
    return found


def lora_layer(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Check a fused layer, forward and backward, against PEFT's own in float64; dropout is off."""
    results = []
    for kind, fused in ((dtype, True), (torch.float64, False)):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(48, 40, dtype=torch.float64))
        model = get_peft_model(base, LoraConfig(r=8, target_modules=["0"], lora_alpha=16))
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.1
        # The same values, rounded, on both sides.
        model = model.to(dtype).to(device, kind)
        model = use_fused_lora(use_bit_mask_dropout(model)) if fused else model
        x_BTD = torch.randn(2, 9, 48, dtype=torch.float64).to(dtype).to(device, kind).requires_grad_()
        y = model(x_BTD)
        y.square().sum().backward()
        results.append([y, x_BTD.grad, *(p.grad for n, p in model.named_parameters() if "lora" in n)])
    names = ("output", "gradient of input", "gradient of A", "gradient of B")
    return {name: relative_error(*pair) for name, pair in zip(names, zip(*results, strict=True), strict=True)}


def _exact(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, log-probabilities and losses in float64."""
    exact = case.exact()
    z_NV = references.logits(exact.head, exact.hidden_ND)
    logp_NV = torch.log_softmax(z_NV, -1)
    return z_NV, logp_NV, references.label_loss(logp_NV, case.label_N)


CHECKS: dict[str, ErrorsOf] = {
    "scores": scores,
    "losses, soft cap, scale, bias": losses,
    "mean embeddings": embeddings,
    "BALD of states": bald,
    "BALD of heads": bald_of_heads,
    "divergence before selection": block_divergence,
    "divergence from the truth": true_divergence,
    "masks of Monte-Carlo dropout": keyed_masks,
    "selection of a quantile": selection,
    "fused LoRA layer": lora_layer,
}
