"""Token losses and entropies of the same texts: `score_examples`, a plain Hugging Face loop, lm-eval's loglikelihood.

All use the same bfloat16 model and the same autocast. Ours and the loop return a polars frame, lm-eval sums of
log-probabilities. Rates are in tokens of the texts per second; padding does not count.
"""

import statistics
import time
from collections.abc import Callable

import polars as pl
import torch

from benchmarks.common import Row, alternate, gsm_examples, mixed_examples, model_folder
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.models.forward import causal_lm, head_of
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.scoring.token_losses import score_examples

PLAIN_BATCH = 8


def plain_loop(model, numerics, examples: list[TokenizedExample]) -> Callable[[], None]:
    """Return a loop over padded batches in the order of the data, with float32 logits of the full vocabulary."""

    @torch.no_grad()
    def run() -> None:
        frames = []
        for first in range(0, len(examples), PLAIN_BATCH):
            rows = examples[first : first + PLAIN_BATCH]
            longest = max(len(row.input_ids) for row in rows)
            ids_BT = torch.tensor([[*row.input_ids, *[0] * (longest - len(row.input_ids))] for row in rows])
            mask_BT = torch.tensor([[1] * len(r.input_ids) + [0] * (longest - len(r.input_ids)) for r in rows])
            with numerics.autocast():
                logp_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1].float().log_softmax(-1)
            loss_BT = -logp_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]
            entropy_BT = -(logp_BTV.exp() * logp_BTV).sum(-1)
            for number, row in enumerate(rows):
                at = torch.tensor(row.positions) - 1
                frames.append(
                    pl.DataFrame(
                        {
                            "example_id": [row.example_id] * len(at),
                            "position": row.positions,
                            "loss": loss_BT[number, at].numpy(),
                            "entropy": entropy_BT[number, at].numpy(),
                        }
                    )
                )
        pl.concat(frames)

    return run


def lm_eval_loop(model, numerics, examples: list[TokenizedExample]) -> Callable[[], None]:
    """Return lm-eval's own batching and scoring of (context, continuation) token pairs."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(
        pretrained=causal_lm(model), tokenizer=load_tokenizer(model_folder()), batch_size=PLAIN_BATCH, max_length=2048
    )
    requests = []
    for row in examples:
        first = row.positions[0]
        requests.append((("", row.example_id), row.input_ids[:first], row.input_ids[first:]))

    def run() -> None:
        with numerics.autocast():
            lm._loglikelihood_tokens(requests, disable_tqdm=True)

    return run


class Products:
    """The matrix products of the scoring pass without anything else: the same shapes, weights and order."""

    def __init__(self, model, examples: list[TokenizedExample]):
        lm = causal_lm(model)
        self.layers = [
            [m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)] for layer in lm.model.layers
        ]
        self.head_VD = head_of(lm).weight_VD
        self.tokens = sum(len(e.input_ids) for e in examples)
        self.scored = sum(len(e.positions) for e in examples)
        a_layer = sum(weight.numel() for weight in self.layers[0])
        self.flop = 2 * (self.tokens * a_layer * len(self.layers) + self.scored * self.head_VD.numel())
        # Drawn here, so that only the products are timed.
        random = lambda rows, width: torch.randn(rows, width).to(self.head_VD.dtype)  # noqa: E731
        chunks = [min(2048, self.tokens - first) for first in range(0, self.tokens, 2048)]
        self.inputs = [{w.shape[1]: random(rows, w.shape[1]) for w in self.layers[0]} for rows in chunks]
        self.hidden_ND = random(self.scored, self.head_VD.shape[1])

    @torch.no_grad()
    def __call__(self) -> None:
        """Compute the products."""
        for by_width in self.inputs:
            for weights in self.layers:
                for weight in weights:
                    by_width[weight.shape[1]] @ weight.T
        for chunk_CD in self.hidden_ND.split(682):
            chunk_CD @ self.head_VD.T


def run(repeats: int) -> list[Row]:
    """Return rows for texts of similar and of mixed lengths: against the loop, lm-eval and the products alone."""
    model, numerics = load_model(model_folder())
    rows = []
    for what, examples, target in (
        ("similar length", gsm_examples(24), 1.3),
        ("mixed lengths", mixed_examples(64), 2.0),
    ):
        tokens = sum(len(e.input_ids) for e in examples)
        print(f"{what}: {len(examples)} texts, {tokens} tokens, {sum(len(e.positions) for e in examples)} scored")
        products = Products(model, examples)
        contestants: dict[str, Callable[[], float | None]] = {
            "ours": timed(lambda examples=examples: score_examples(model, examples, numerics)),
            "plain loop": plain_loop(model, numerics, examples),
            "lm-eval": lm_eval_loop(model, numerics, examples),
            "products alone": products,
        }
        seconds = alternate(contestants, repeats)
        rate = {name: tokens / value for name, value in seconds.items()}
        for rival, wanted in (("plain loop", target), ("lm-eval", 1.3)):
            ratio = rate["ours"] / rate[rival]
            rows.append(
                Row(
                    f"token loss + entropy, {what}: ours / {rival}",
                    f"{rate['ours']:,.0f} tokens/s",
                    f"{rate[rival]:,.0f} tokens/s",
                    ratio,
                    f">= {wanted:g}",
                    ratio >= wanted,
                )
            )
        achieved, limit = products.flop / seconds["ours"] / 1e9, products.flop / seconds["products alone"] / 1e9
        rows.append(
            Row(
                f"scoring FLOP rate / GEMM rate at the model's shapes, {what}",
                f"{achieved:,.0f} GFLOP/s",
                f"{limit:,.0f} GFLOP/s",
                achieved / limit,
                ">= 0.6",
                achieved / limit >= 0.6,
            )
        )
    return rows


def timed(call: Callable) -> Callable[[], float]:
    """Return `call` as a contestant that returns its seconds instead of its result."""

    def run() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return run


def matmul_rate(repeats: int = 5) -> float:
    """Return the GFLOP/s of one large square product in the model's dtype, which the page states for the machine."""
    size = 2048
    a, b = (torch.randn(size, size).to(load_model(model_folder())[1].dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[2:]) / 1e9
