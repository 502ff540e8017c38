"""True distributions of tiny examples: random ones over a few ids, as the table `token_truth` holds them."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from tests.support.tiny_models import VOCAB
from tokenuq_ml.data.batching import TokenizedExample

SLOTS = ("structure", "fact", "choice")


def truth_of(rows: Sequence[TokenizedExample], seed: int = 0, vocab: int = VOCAB) -> pl.DataFrame:
    """Return rows of `token_truth`: slots in turn; structure has one possible id, the token itself.

    A fact is one id, or with label noise one of four; a choice is one of four with unequal probabilities.
    """
    draw, frame = np.random.default_rng(seed), []
    for row in rows:
        for number, position in enumerate(row.positions):
            slot, token = SLOTS[number % len(SLOTS)], row.input_ids[position]
            others = [int(one) for one in draw.permutation(vocab) if one != token][:3]
            support = [token] if slot == "structure" else sorted([token, *others])
            clean = [float(one == token) for one in support]
            noisy = {
                "structure": clean,
                "fact": [0.85 if one == token else 0.05 for one in support],
                "choice": draw.dirichlet(np.ones(len(support))).tolist(),
            }[slot]
            p = np.array(noisy)
            frame.append(
                {
                    "example_id": row.example_id,
                    "position": position,
                    "slot": slot,
                    "true_entropy": float(-(p * np.log(p)).sum()),
                    "true_loss": float(-np.log(p[support.index(token)])),
                    "support": support,
                    "probabilities": noisy,
                    "clean_probabilities": noisy if slot == "choice" else clean,
                }
            )
    schema = {"position": pl.Int32, "support": pl.List(pl.Int32)}
    return pl.DataFrame(frame, schema_overrides=schema).sample(fraction=1.0, shuffle=True, seed=seed)


def plain_kl(logits, truth: pl.DataFrame, example: TokenizedExample, column: str = "probabilities") -> list[float]:
    """Return KL(truth || model) of each response token, a token at a time in numpy, from `logits [N, vocabulary]`."""
    rows = {row["position"]: row for row in truth.filter(example_id=example.example_id).iter_rows(named=True)}
    z = logits.double().numpy()
    log_q = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
    found = []
    for number, position in enumerate(example.positions):
        pairs = zip(rows[position]["support"], rows[position][column], strict=True)
        found.append(sum(p * (np.log(p) - log_q[number, token]) for token, p in pairs if p > 0))
    return found
