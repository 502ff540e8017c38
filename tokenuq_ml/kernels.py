"""The one place where hidden states become logits, a chunk of rows at a time.

Cross-entropy, entropy, rank, Monte-Carlo statistics, and the training loss with its
gradient; never a `[B, T, V]` or `[N, V]` tensor. Formulas over one block of logits are in
`block_formulas.py`. All reductions over the vocabulary are
float32 (float64 for float64 input); the matrix products run in the head's own dtype.
This file does not know which tokens are selected, nor where hidden states come from.

Shapes: N response tokens, C of them in one product, R of those reduced at a time, D hidden
size, V vocabulary, K samples; M of the N tokens, with A likeliest tokens each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokenuq_ml import block_formulas
from tokenuq_ml.head_gradients import Gradients, accumulation

CHUNK_BYTES = 64 * 2**20
"""Budget for the logits of one matrix product, in the head's dtype: large enough to keep it busy."""
BLOCK_BYTES = 2**20
"""Budget for the float32 logits that are reduced at a time: they stay in the processor's cache, where the
several passes of a softmax cost a fraction of what they cost in memory."""


@dataclass(frozen=True)
class Head:
    """The output layer: `logits = cap(scale * (hidden @ weight.T + bias))`."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def product(self, hidden_CD: Tensor) -> Tensor:
        """`hidden @ weight.T` in the head's dtype, for any leading dimensions."""
        rows_CD = hidden_CD.reshape(-1, hidden_CD.shape[-1]).to(self.weight_VD.dtype)
        with torch.autocast(hidden_CD.device.type, enabled=False):
            # Always of two matrices: a batched product would copy the head for each of the batch.
            return (rows_CD @ self.weight_VD.T).unflatten(0, hidden_CD.shape[:-1])

    def finish(self, product_RV: Tensor) -> Tensor:
        """Logits from the product, in float32 (float64 for a float64 head); never the product itself."""
        logits_RV = product_RV.to(accumulation(product_RV), copy=True)
        if self.bias_V is not None:
            logits_RV += self.bias_V
        if self.scale != 1.0:
            logits_RV *= self.scale
        if self.softcap is not None:
            # Gemma-2, arXiv 2408.00118, section 2.
            logits_RV = self.softcap * torch.tanh(logits_RV / self.softcap)
        return logits_RV

    def product_gradient(self, grad_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """The gradient with respect to the product, from that with respect to the logits."""
        if self.softcap is not None:
            grad_RV = grad_RV * (1 - (logits_RV / self.softcap) ** 2)
        return grad_RV * self.scale if self.scale != 1.0 else grad_RV

    def hidden_gradient(self, grad_CV: Tensor) -> Tensor:
        """`grad_CD`, the gradient with respect to the hidden states, from that with respect to the product."""
        with torch.autocast(grad_CV.device.type, enabled=False):
            return grad_CV @ self.weight_VD


def _chunks(rows: int, head: Head, copies: int = 1) -> Iterator[slice]:
    """Rows of one product, so that `copies` matrices of logits fit the budget."""
    size = max(1, CHUNK_BYTES // (head.weight_VD.element_size() * head.weight_VD.shape[0] * copies))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _blocks(rows: int, head: Head, copies: int = 1) -> Iterator[slice]:
    """Rows that are reduced together within a chunk of `rows`."""
    size = max(1, BLOCK_BYTES // (4 * head.weight_VD.shape[0] * copies))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class TokenScores(NamedTuple):
    """Of N tokens: cross-entropy in nats, entropy in nats, and how many tokens are likelier."""

    loss_N: Tensor
    entropy_N: Tensor
    rank_N: Tensor
    choice_MA: Tensor | None = None
    """Of the M tokens that were asked for: ids of the A likeliest tokens, likeliest first."""
    probability_MA: Tensor | None = None
    """And their probabilities."""


@torch.no_grad()
def token_scores(
    hidden_ND: Tensor, head: Head, label_N: Tensor, choices: int = 0, wanted_N: Tensor | None = None
) -> TokenScores:
    """Loss, entropy and rank of each label; with `choices`, the likeliest tokens where `wanted_N` says so.

    One head product a token, no gradient.
    """
    rows, tops = [], []
    for chunk in _chunks(len(label_N), head):
        product_CV, label_C = head.product(hidden_ND[chunk]), label_N[chunk]
        for block in _blocks(len(label_C), head):
            z_RV, label_R = head.finish(product_CV[block]), label_C[block]
            rows.append(block_formulas.scores(z_RV, label_R))
            if choices and (asked_M := wanted_N[chunk][block].nonzero()[:, 0]).numel():
                tops.append(block_formulas.likeliest(z_RV[asked_M], label_R[asked_M], rows[-1][0][asked_M], choices))
    scores = TokenScores(*_joined(rows, hidden_ND, (None, None, torch.int32)))
    return scores._replace(choice_MA=_rows(tops, 0), probability_MA=_rows(tops, 1)) if tops else scores


def _rows(parts: list[tuple[Tensor, ...]], column: int) -> Tensor:
    return torch.cat([part[column] for part in parts])


@torch.no_grad()
def token_losses(hidden_ND: Tensor, head: Head, label_N: Tensor) -> Tensor:
    """`loss_N` in nats: what selection needs. One head product a token, no gradient."""
    rows = []
    for chunk in _chunks(len(label_N), head):
        product_CV, label_C = head.product(hidden_ND[chunk]), label_N[chunk]
        for block in _blocks(len(label_C), head):
            z_RV = head.finish(product_CV[block])
            rows.append((block_formulas.label_loss(z_RV, label_C[block]),))
    return _joined(rows, hidden_ND, (None,))[0]


class MonteCarloScores(NamedTuple):
    """Of N tokens, in nats; `predictive_entropy = expected_entropy + bald`."""

    predictive_entropy_N: Tensor
    expected_entropy_N: Tensor
    bald_N: Tensor
    bald_std_error_N: Tensor
    """Spread of `bald_N` over draws of the K samples; see `block_formulas.monte_carlo`."""
    mc_loss_N: Tensor


@torch.no_grad()
def monte_carlo_scores(hidden_KND: Tensor, head: Head, label_N: Tensor) -> MonteCarloScores:
    """BALD (Houlsby et al. 2011, arXiv 1112.5745) of K samples of each token's distribution.

    The formula is `block_formulas.monte_carlo`'s. One head product a token and sample; a chunk holds the K
    products of at least one token, and nothing else grows with K.
    """
    rows = []
    samples = hidden_KND.shape[0]
    for chunk in _chunks(len(label_N), head, copies=samples):
        product_KCV, label_C = head.product(hidden_KND[:, chunk]), label_N[chunk]
        for block in _blocks(len(label_C), head, copies=3):
            logits = lambda sample, block=block: head.finish(product_KCV[sample, block])  # noqa: E731, B023
            rows.append(block_formulas.monte_carlo(logits, samples, label_C[block]))
    return MonteCarloScores(*_joined(rows, hidden_KND[0], (None,) * 5))


class Weights(NamedTuple):
    """What each token's cross-entropy and divergence count in the sum of `training_loss`."""

    mle_N: Tensor
    distill_N: Tensor


class TeacherStates(NamedTuple):
    """A teacher's distributions q of N tokens, in either of two forms.

    `hidden_ND`: its states after the final norm; the head gives any divergence from them.
    `mean_ND` and `offset_N`: the gradient `mu` of log-sum-exp at those states, and log-sum-exp less
    `hidden . mu`; see `mean_embeddings`. They give forward KL at temperature 1 without a head product.
    """

    hidden_ND: Tensor | None = None
    mean_ND: Tensor | None = None
    offset_N: Tensor | None = None


class MeanEmbeddings(NamedTuple):
    """Of N tokens: `mean_ND = scale * W^T p`, `lse_N`, `loss_N` of the labels (None without labels)."""

    mean_ND: Tensor
    lse_N: Tensor
    loss_N: Tensor | None

    def states(self, hidden_ND: Tensor) -> TeacherStates:
        """What a teacher's cache holds of these tokens, whose states are `hidden_ND`."""
        return TeacherStates(mean_ND=self.mean_ND, offset_N=self.lse_N - _dot(hidden_ND, self.mean_ND))


@torch.no_grad()
def mean_embeddings(hidden_ND: Tensor, head: Head, label_N: Tensor | None = None) -> MeanEmbeddings:
    """The mean output embedding under each token's distribution p, which is the gradient of log-sum-exp.

    With it, log-sum-exp `lse` being convex in the hidden state h, forward KL is its Bregman divergence:
    `KL(q || p) = lse(h) - lse(h_q) - mu_q . (h - h_q)`, with gradient `mu_p - mu_q`; and cross-entropy
    has the gradient `mu_p - scale * W[label]`. Two head products a token. With a bfloat16 head the divergence of
    one token carries the rounding of its logits, some hundredths of a nat with mean 0; gradients carry what
    those from hidden states do.

    Raises:
        ValueError: the head soft-caps, so that its logits are not linear in the hidden state.
    """
    if head.softcap is not None:
        raise ValueError("mean embeddings need logits that are linear in the hidden state; this head soft-caps them")
    means, rows = [], []
    for chunk in _chunks(len(hidden_ND), head):
        product_CV = head.product(hidden_ND[chunk])
        for block in _blocks(len(product_CV), head, copies=2):
            z_RV = head.finish(product_CV[block])
            max_R1 = z_RV.amax(1, keepdim=True)
            z_RV -= max_R1
            row = () if label_N is None else (z_RV.gather(1, label_N[chunk][block, None])[:, 0],)
            sum_R1 = z_RV.exp_().sum(1, keepdim=True)
            log_R = sum_R1[:, 0].log()
            rows.append((max_R1[:, 0] + log_R, *(log_R - label_R for label_R in row)))
            product_CV[block] = z_RV.mul_(head.scale / sum_R1)
        means.append(head.hidden_gradient(product_CV))
    mean_ND = torch.cat(means) if means else hidden_ND.to(head.weight_VD.dtype, copy=True)
    lse_N, *loss = _joined(rows, hidden_ND, (None,) * (1 if label_N is None else 2))
    return MeanEmbeddings(mean_ND, lse_N, loss[0] if loss else None)


class TrainingLoss(NamedTuple):
    """`total` is differentiable; the others are for the record, 0 for tokens that were not asked for them."""

    total: Tensor
    loss_N: Tensor
    """Cross-entropy: of every token where selection or the caller asked for it, else of those with an `mle` weight."""
    divergence_N: Tensor
    weights: Weights


def training_loss(
    hidden_ND: Tensor,
    head: Head,
    label_N: Tensor,
    weights: Weights | Callable[[Tensor], Weights],
    teacher: TeacherStates | None = None,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    teacher_head: Head | None = None,
    gain: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    every_loss: bool = False,
) -> TrainingLoss:
    """`sum_n mle_n * gain_n * CE_n + distill_n * divergence(teacher_n, student_n)`, and its gradient.

    CE is at temperature 1; divergences are in `block_formulas.py`, in nats. The gradient is computed
    on the way forward: with respect to the hidden states, and to the head's weight and bias if they
    require it. Head products a token:

    - CE: 2 (logits, gradient).
    - divergence from hidden states: 3 (the teacher's logits too); from mean embeddings: 2.
    - weights that follow from the losses: 1 more for every token, except with mean embeddings,
      where 2 suffice for everything (and are spent on every token).
    - a trainable head: 1 more for each token that is trained.

    Args:
        weights: or a function that gives them from `loss_N`, for selection by loss.
        teacher: None where no weight asks for it; mean embeddings only with forward KL, temperature 1,
            no soft-capping and a frozen head (they belong to the head that made them).
        teacher_head: the head of the teacher's hidden states, where it is not `head`: a trainable head
            changes, its teacher's does not.
        gain: `gain(logits_RV, loss_R, index_R)` gives factors of R tokens' cross-entropy that follow from its own
            logits, with no gradient of their own and no further product; not with mean embeddings. The weights
            that are returned include it. Default: 1.
        every_loss: the cross-entropy of all tokens is wanted, for the record: 1 product more for those that are
            not trained, none for the others.
    """
    grads = Gradients(hidden_ND, head)
    linear = teacher is not None and teacher.mean_ND is not None
    odd = divergence != "forward_kl" or temperature != 1.0 or head.softcap is not None or grads.of_head
    if linear and (odd or gain is not None):
        raise ValueError(
            "mean embeddings give forward KL at temperature 1 of a frozen head without soft-capping, and cross-entropy "
            f"without a gain, and nothing else (divergence {divergence}, temperature {temperature}, softcap "
            f"{head.softcap})"
        )
    known = callable(weights)
    with torch.no_grad():
        loss_N = torch.zeros(len(label_N), dtype=accumulation(hidden_ND), device=hidden_ND.device)
        divergence_N = torch.zeros_like(loss_N)
        if linear:
            weights = _from_means(grads, label_N, weights, teacher, loss_N, divergence_N)
        else:
            if callable(weights):
                loss_N.copy_(token_losses(hidden_ND.detach(), head, label_N))
                weights = weights(loss_N)
            gain_N = torch.ones_like(loss_N)

            def cross_entropy(z_RV: Tensor, at_R: Tensor) -> tuple[Tensor, Tensor]:
                loss_R, grad_RV = block_formulas.cross_entropy(z_RV, label_N[at_R])
                if gain is not None:
                    gain_N[at_R] = gain(z_RV, loss_R, at_R)
                    grad_RV *= gain_N[at_R, None]
                return loss_R, grad_RV

            _from_logits(grads, weights.mle_N, loss_N, cross_entropy)

            def distance(z_RV: Tensor, at_R: Tensor, teacher_RV: Tensor) -> tuple[Tensor, Tensor]:
                if every_loss and not known:
                    loss_N[at_R] = block_formulas.label_loss(z_RV, label_N[at_R])
                return block_formulas.divergence(divergence, z_RV, teacher_RV, temperature)

            if teacher is not None:
                _from_logits(grads, weights.distill_N, divergence_N, distance, teacher.hidden_ND, teacher_head or head)
            elif weights.distill_N.any():
                raise ValueError("tokens are to be distilled, and there is no teacher")
            if gain is not None:
                weights = weights._replace(mle_N=weights.mle_N.to(loss_N.dtype) * gain_N)
        if every_loss and not known:
            untrained_M = ((weights.mle_N == 0) & (weights.distill_N == 0)).nonzero()[:, 0]
            loss_N[untrained_M] = token_losses(hidden_ND.detach()[untrained_M], head, label_N[untrained_M])
        total = (weights.mle_N.to(loss_N.dtype) * loss_N + weights.distill_N.to(loss_N.dtype) * divergence_N).sum()
    return TrainingLoss(grads.attach(total), loss_N, divergence_N, weights)


def _from_logits(
    grads: Gradients,
    weight_N: Tensor,
    out_N: Tensor,
    function: Callable[..., tuple[Tensor, Tensor]],
    teacher_ND: Tensor | None = None,
    teacher_head: Head | None = None,
) -> None:
    """One term of the objective for the tokens of weight above 0: values into `out_N`, gradients into `grads`.

    `function(logits_RV, index_R[, teacher_RV])` gives both of a block.
    """
    head, trained_M = grads.head, weight_N.nonzero()[:, 0]
    copies = 2 if teacher_head is None else 3
    for chunk in _chunks(len(trained_M), head, copies):
        index_C = trained_M[chunk]
        product_CV = head.product(grads.hidden_ND.detach()[index_C])
        teacher_CV = None if teacher_head is None else teacher_head.product(teacher_ND[index_C])
        for block in _blocks(len(index_C), head, copies):
            index_R = index_C[block]
            logits_RV = head.finish(product_CV[block])
            teacher = () if teacher_head is None else (teacher_head.finish(teacher_CV[block]),)
            out_N[index_R], grad_RV = function(logits_RV, index_R, *teacher)
            grad_RV *= weight_N[index_R, None].to(grad_RV.dtype)
            # The product is not needed any more: its place takes its gradient.
            product_CV[block] = head.product_gradient(grad_RV, logits_RV)
        grads.add(index_C, product_CV)


def _from_means(
    grads: Gradients,
    label_N: Tensor,
    weights: Weights | Callable[[Tensor], Weights],
    teacher: TeacherStates,
    loss_N: Tensor,
    divergence_N: Tensor,
) -> Weights:
    """The whole objective in one pass over the head: losses, then weights, then both gradients from `mu`."""
    head, hidden_ND = grads.head, grads.hidden_ND.detach()
    if callable(weights):
        trained_M = torch.arange(len(label_N), device=hidden_ND.device)
    else:
        trained_M = (weights.mle_N + weights.distill_N).nonzero()[:, 0]
    hidden_MD, label_M = hidden_ND[trained_M], label_N[trained_M]
    student = mean_embeddings(hidden_MD, head, label_M)
    loss_N[trained_M] = student.loss_N
    if callable(weights):
        weights = weights(loss_N)
    mle_M, distill_M = (weight_N[trained_M].to(loss_N.dtype) for weight_N in weights)
    mean_MD, distils_M = teacher.mean_ND[trained_M], distill_M > 0
    # Rounding may leave less than 0. Clamped, the mean over tokens would be too high: in bfloat16 nearly twice.
    divergence_M = student.lse_N - _dot(hidden_MD, mean_MD) - teacher.offset_N[trained_M]
    divergence_N[trained_M] = torch.where(distils_M, divergence_M, 0.0)
    grad_MD = student.mean_ND.to(loss_N.dtype) * (mle_M + distill_M)[:, None]
    grad_MD -= head.weight_VD[label_M] * (head.scale * mle_M)[:, None]
    grad_MD -= mean_MD * distill_M[:, None]
    grads.grad_ND[trained_M] = grad_MD.to(grads.grad_ND.dtype)
    return weights


def _dot(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Row by row, in float32 (float64 for float64)."""
    return (a_ND.to(accumulation(a_ND)) * b_ND).sum(1)


def _joined(rows: list[tuple], like: Tensor, dtypes: tuple) -> list[Tensor]:
    """Concatenates columns of rows; N = 0 gives empty tensors of the right type."""
    if rows:
        return [torch.cat(column) for column in zip(*rows, strict=True)]
    return [torch.empty(0, dtype=dtype or accumulation(like), device=like.device) for dtype in dtypes]
