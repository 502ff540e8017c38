"""Train with the token-level objective in your own Trainer.

A small random model learns sums such as `3+4=07 is 3 plus 4.` by maximum likelihood (the baseline). Then two copies
train on: one by maximum likelihood again, the other with the paper's objective (arXiv 2503.16511), which trains the
25% of tokens with the highest loss by maximum likelihood and distils the baseline on the rest. The script prints the
loss of each model on the training sums and on other sums. A model this small cannot tell the two objectives apart: the
losses on other sums differ more between seeds than between objectives. Runs in about 15 seconds on two cores.
"""

import copy
import random
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed

from tokenuq_ml import SeparateTeacher, TokenObjective

STEPS = 100
MLE = {"select": "all"}
PAPER = {"select": {"by": "loss", "quantile": 0.25}, "selected": "mle", "rest": {"distill": {}}}


class TokenTrainer(TokenObjective, Trainer):
    """A plain transformers Trainer with the token-level objective. Any other subclass of Trainer works too."""


def random_model() -> LlamaForCausalLM:
    """Return a Llama with two layers, random weights and ASCII codes as token ids."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def encode(a: int, b: int) -> dict[str, list[int]]:
    """Return one row of training data. The label -100 marks the prompt's tokens, which are not trained."""
    prompt, response = f"{a}+{b}=", f"{a + b:02d} is {a} plus {b}."
    ids = [ord(character) for character in prompt + response]
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Return a batch. All rows have the same length, so that it needs no padding."""
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def train(model: LlamaForCausalLM, ablation: dict, rows: list[dict], teacher: LlamaForCausalLM | None = None):
    """Train all parameters of `model` and return it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=16,
            max_steps=STEPS,
            learning_rate=3e-3,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = TokenTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=collate,
            ablation=ablation,
            # A model with a LoRA adapter needs no teacher of its own: the model without its adapter is the default.
            teacher=SeparateTeacher(teacher) if teacher is not None else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model


@torch.no_grad()
def loss(model: LlamaForCausalLM, rows: list[dict]) -> float:
    """Return the mean cross-entropy of the response tokens, in nats."""
    return float(model.eval()(**collate(rows)).loss)


def main() -> None:
    """Train the three models and print their losses."""
    # Two threads would spend their time waiting for each other on tensors this small.
    torch.set_num_threads(1)
    rows = [encode(a, b) for a in range(10) for b in range(10)]
    random.Random(0).shuffle(rows)
    training_rows, other_rows = rows[:80], rows[80:]

    baseline = train(random_model(), MLE, training_rows)
    models = {
        "random": random_model(),
        "baseline": baseline,
        "more MLE": train(copy.deepcopy(baseline), MLE, training_rows),
        "paper": train(copy.deepcopy(baseline), PAPER, training_rows, teacher=copy.deepcopy(baseline)),
    }
    print(f"{'nats per token':<15}{'training sums':>15}{'other sums':>12}")
    for name, model in models.items():
        print(f"{name:<15}{loss(model, training_rows):>15.3f}{loss(model, other_rows):>12.3f}")


if __name__ == "__main__":
    main()
