"""Select tokens and weight their loss with functions of your own.

An ablation names your functions as `module:function`. This file is the module `own_selector`: `above_example_mean`
decides which tokens are trained, `focal` weights their loss. A small random model learns sums with each of them. The
script prints the share of selected tokens and the loss on sums that were not in the training data. Runs in about 15
seconds on two cores.
"""

import random
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed

from tokenuq_ml import TokenObjective

# The grammar is that of config/ablations.yaml (docs/ablations.md). A module of yours may lie next to your YAML files.
ABLATIONS = {
    "mle": {"select": "all"},
    "own selector": {
        "select": {"by": "own_selector:above_example_mean", "keep": "above", "threshold": 0.0},
        "rest": "none",
    },
    "own objective": {"select": "all", "selected": "own_selector:focal"},
}


def above_example_mean(tokens) -> torch.Tensor:
    """Return the score of each token: its loss minus the mean loss of its example.

    Selecting by it takes the hard tokens of every example, instead of all tokens of the hard examples.

    Args:
        tokens: the response tokens of one optimiser batch (`tokenuq_ml.training.tokens.Tokens`): `loss_N`,
            `example_N`, `step`, `steps`, and `column(name)` for columns of the token tables.
    """
    examples = int(tokens.example_N.max()) + 1
    total_E = torch.zeros(examples, device=tokens.loss_N.device).index_add_(0, tokens.example_N, tokens.loss_N)
    mean_E = total_E / torch.bincount(tokens.example_N, minlength=examples)
    return tokens.loss_N - mean_E[tokens.example_N]


def focal(tokens) -> torch.Tensor:
    """Return the weight of each token's cross-entropy: `(1 - p)^2` (focal loss, arXiv 1708.02002)."""
    return (1 - torch.exp(-tokens.loss_N)) ** 2


class CountingTrainer(TokenObjective, Trainer):
    """A Trainer that counts response tokens and selected tokens."""

    n_tokens = n_selected = 0

    def record(self, batch, out, tokens_of_step: int) -> None:
        """Count the tokens of a micro-batch. TokenObjective calls this after each one."""
        self.n_tokens += len(out.selected_N)
        self.n_selected += int(out.selected_N.sum())


def random_model() -> LlamaForCausalLM:
    """Return a Llama with two layers, random weights and ASCII codes as token ids."""
    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=128, bos_token_id=None, eos_token_id=None, **sizes))


def encode(a: int, b: int) -> dict[str, list[int]]:
    """Return one row of training data. The label -100 marks the prompt's tokens, which are not trained."""
    prompt, response = f"{a}+{b}=", f"{a + b:02d} is {a} plus {b}."
    ids = [ord(character) for character in prompt + response]
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Return a batch. All rows have the same length, so that it needs no padding."""
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def train(ablation: dict, rows: list[dict], folder: str) -> CountingTrainer:
    """Train a random model with an ablation and return its trainer."""
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        # Selectors see the optimiser batch. How it is split into micro-batches changes nothing.
        gradient_accumulation_steps=2,
        max_steps=80,
        learning_rate=3e-3,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    model = random_model()
    trainer = CountingTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, ablation=ablation)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def main() -> None:
    """Train one model per ablation and print its selected share and its loss on new sums."""
    # Two threads would spend their time waiting for each other on tensors this small.
    torch.set_num_threads(1)
    rows = [encode(a, b) for a in range(10) for b in range(10)]
    random.Random(0).shuffle(rows)
    print(f"{'ablation':<15}{'selected':>10}{'loss on new sums, nats':>25}")
    for name, ablation in ABLATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = train(ablation, rows[:80], folder)
        with torch.no_grad():
            loss = float(trainer.model.eval()(**collate(rows[80:])).loss)
        print(f"{name:<15}{trainer.n_selected / trainer.n_tokens:>10.0%}{loss:>25.3f}")


if __name__ == "__main__":
    main()
