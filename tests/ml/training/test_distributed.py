"""Two gloo processes under accelerate's DDP give the result of one process."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from tests.support.ranks import run_ranks
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_peft
from tests.support.training import MLE, PAPER, training_setup
from tokenuq_ml import TokenObjective
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.trainer import train

WEIGHTED = "weighted"
BOUND = 1e-13
"""Largest difference of a weight after six steps in float64, where 6e-16 was measured: the order of sums remains."""
SUM = AblationSpec(
    name="sum",
    select={"by": "divergence", "quantile": 0.25},
    selected={"talr": {}, "distill": {"weight": 0.5}},
    rest="distill",
)
"""Selection and weights need the divergences and losses of the complete batch; selected tokens have both losses."""
ABLATIONS = {"mle": (MLE, 1), "paper": (PAPER, 2), WEIGHTED: (PAPER, 2), "sum": (SUM, 1)}
"""Name -> the ablation and the size of its micro-batches on two ranks."""


def setup_of(name: str, micro: int) -> TrainingSetup:
    """Return the training; of `WEIGHTED`, every third example has weights of tokens, so that a rank may have none."""
    setup = training_setup(ABLATIONS[name][0], micro)
    if name == WEIGHTED:
        setup.examples = [
            one if number % 3 else replace(one, weights=[place % 3 / 2 for place in range(len(one.input_ids))])
            for number, one in enumerate(setup.examples)
        ]
    return setup


def train_here(name: str, micro: int, folder: Path) -> None:
    """Train in float64 as one rank, which is the only one without a launcher; rank 0 saves the result in `folder`."""
    model = tiny_peft(trained=True).double()
    recorder = train(model, setup_of(name, micro), folder / "work", RecordingReporter(), "x")
    if int(os.environ.get("RANK", 0)) == 0:
        recorder.save(folder)
        model.save_pretrained(folder)


class MyTrainer(TokenObjective, Trainer):
    """A user's own Trainer."""


def log_here(folder: Path, micro: int) -> None:
    """Train a user's Trainer as one rank, on eight examples in optimiser batches of four; rank 0 saves its log."""
    batches = [{"input_ids": row, "labels": row} for row in torch.randint(3, 97, (8, 12)).tolist()]
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=micro,
        max_steps=2,
        train_sampling_strategy="sequential",
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = MyTrainer(model=tiny_peft(), args=arguments, train_dataset=batches, ablation=PAPER)
    trainer.train()
    if int(os.environ.get("RANK", 0)) == 0:
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """A folder per ablation, trained by two ranks; the same two processes train one after the other."""
    folder = tmp_path_factory.mktemp("two_ranks")
    run_ranks(__file__, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_two_ranks_give_the_result_of_one(name, two_ranks, tmp_path):
    """Losses, selections and adapter are the same: there is one quantile and one division over both ranks.

    Eleven examples in batches of four: in the last batch, the second rank has fewer examples than the first.
    """
    one, two = tmp_path, two_ranks / name
    train_here(name, 4, one)
    logs = [pl.read_parquet(folder / "training_log.parquet") for folder in (one, two)]
    for column in ("loss", "grad_norm", "mle_loss", "selected_share", "tokens"):
        # The table has float32.
        torch.testing.assert_close(*(torch.tensor(log[column].to_list()) for log in logs), rtol=1e-6, atol=1e-7)
    keys = ["step", "example_id", "position"]
    rows = [pl.read_parquet(folder / "selections.parquet").sort(keys).drop("loss") for folder in (one, two)]
    assert rows[0].equals(rows[1])
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=BOUND)


@pytest.mark.slow
def test_weights_of_tokens_count_on_two_ranks(two_ranks):
    """The first step selects the same tokens with and without weights, and its loss differs."""
    plain, weighted = (pl.read_parquet(two_ranks / name / "training_log.parquet") for name in ("paper", WEIGHTED))
    assert weighted["loss"][0] < plain["loss"][0] - 0.01
    assert weighted["selected_share"][0] == plain["selected_share"][0] and weighted["tokens"][0] == plain["tokens"][0]


@pytest.mark.slow
def test_the_log_of_two_ranks_is_that_of_one(two_ranks, tmp_path):
    """Entropy, accuracy, tokens, and what the objective adds are over both ranks."""
    torch.manual_seed(0)
    log_here(tmp_path, 4)
    one, two = (json.loads((folder / "log.json").read_text())[:2] for folder in (tmp_path, two_ranks))
    for ours, theirs in zip(one, two, strict=True):
        for name in ("entropy", "mean_token_accuracy", "num_tokens", "selected_share", "distill_loss"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-5), name


if __name__ == "__main__":
    for name, (_, micro) in ABLATIONS.items():
        train_here(name, micro, Path(sys.argv[1]) / name)
    torch.manual_seed(0)
    log_here(Path(sys.argv[1]), 2)
