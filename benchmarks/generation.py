"""Greedy answers to a batch of 32 prompts: `evaluation.generation`, transformers' `generate` and its `generate_batch`.

All use the same bfloat16 model, and no answer ends early. `generate_batch` (continuous batching) has a cache and a
batch that hold all prompts at once. The rates of decoding steps are compared with the model's matrix products at the
same number of rows.
"""

import time
from collections.abc import Callable

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.common import Row, alternate, gsm_examples, model_folder
from tokenuq_ml.evaluation import generation
from tokenuq_ml.evaluation.decode_loop import Prompts
from tokenuq_ml.evaluation.generation import NEVER, GreedyDecoding, answer_pass
from tokenuq_ml.evaluation.stop_strings import StopStrings
from tokenuq_ml.models.load import load_model, load_tokenizer

BATCH, NEW = 32, 48
STEPS = 8
"""Timed decoding steps, after as many that are not."""


class WithoutEnds:
    """The model's tokenizer; no token ends an answer."""

    def __init__(self, tokenizer):
        self._tokenizer, self.eos_token_id, self.pad_token_id = tokenizer, None, 0

    def decode(self, ids, **kwargs) -> str:
        """Return the text of ids."""
        return self._tokenizer.decode(ids, **kwargs)


def contestants(model, tokenizer, prompts: Prompts, found: dict[str, Prompts]) -> dict[str, Callable[[], None]]:
    """Return what answers the prompts, and puts the answers into `found`."""
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=NEVER, pad_token_id=0)
    columns = sum(map(len, prompts)) + BATCH * NEW
    # One page holds 256 tokens of one row.
    paged = ContinuousBatchingConfig(num_blocks=2 * BATCH, max_batch_tokens=columns, max_requests_per_batch=BATCH)

    def ours() -> None:
        with answer_pass(model, tokenizer, GreedyDecoding(NEW, BATCH)) as answer:
            found["ours"] = answer(prompts)

    def plain() -> None:
        with generation._evaluating(model, config):
            found["generate"] = generation.generate_batch(model, prompts, 0, StopStrings(tokenizer, ()))

    def continuous() -> None:
        outputs = model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=paged, progress_bar=False, warmup=False
        )
        found["generate_batch"] = [output.generated_tokens for output in outputs.values()]

    return {"ours": ours, "generate": plain, "generate_batch": continuous}


@torch.no_grad()
def step_seconds(model, prompts: Prompts) -> float:
    """Return the seconds of a decoding step of our loop."""
    with generation.fast_head(model), generation._rows(model, 0) as start:
        rows = start(prompts)
        for step in range(2 * STEPS):
            if step == STEPS:
                started = time.perf_counter()
            rows.advance(rows.logits_MV.argmax(-1))
        return (time.perf_counter() - started) / STEPS


@torch.no_grad()
def product_seconds(model) -> float:
    """Return the seconds of the products of one step with the weights of all layers."""
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {width: torch.randn(BATCH, width).to(model.dtype) for width in {weight.shape[1] for weight in weights}}
    for step in range(2 * STEPS):
        if step == STEPS:
            started = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
    return (time.perf_counter() - started) / STEPS


def run(repeats: int) -> list[Row]:
    """Return rows for answers per second against both rivals, and for the rate of decoding steps."""
    model, tokenizer = load_model(model_folder())[0], WithoutEnds(load_tokenizer(model_folder()))
    model.generation_config.eos_token_id = None
    prompts = [row.input_ids[: row.positions[0]] for row in gsm_examples(2 * BATCH)][:BATCH]
    print(
        f"{len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, {NEW} new tokens each"
    )
    found: dict[str, Prompts] = {}
    seconds = alternate(contestants(model, tokenizer, prompts, found), repeats)
    same = found["ours"] == found["generate"]
    print(f"answers equal to generate's: {same}; to generate_batch's: {found['ours'] == found['generate_batch']}")
    rows = []
    for rival, wanted in (("generate", 1.0), ("generate_batch", 1.0)):
        ratio = seconds[rival] / seconds["ours"]
        rates = [
            f"{BATCH / seconds[name]:.1f} answers/s, {BATCH * NEW / seconds[name]:,.0f} tokens/s"
            for name in ("ours", rival)
        ]
        what = f"generation, {BATCH} prompts, {NEW} new tokens: ours / {rival}"
        rows.append(Row(what, *rates, ratio, f">= {wanted:g}", ratio >= wanted and (same or rival != "generate")))
    timed = alternate(
        {"a step": lambda: step_seconds(model, prompts), "products": lambda: product_seconds(model)}, repeats
    )
    share = timed["products"] / timed["a step"]
    rates = [f"{BATCH / timed[name]:,.0f} tokens/s" for name in ("a step", "products")]
    rows.append(
        Row(f"decoding steps of {BATCH} rows / products of {BATCH} rows", *rates, share, ">= 0.4", share >= 0.4)
    )
    return rows
