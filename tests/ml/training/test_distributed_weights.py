"""Two gloo processes train a complete model, and an adapter on a quantised base, as one process does."""

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.ranks import run_ranks
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_model
from tests.support.training import PAPER, training_setup
from tokenuq_ml.config import LoraSpec, TrainSpec
from tokenuq_ml.models.adapters import add_trained_weights
from tokenuq_ml.models.base_settings import BaseSettings
from tokenuq_ml.models.load import load_model
from tokenuq_ml.training.teacher import SeparateTeacher
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.heavy
KINDS = {"none": 1e-13, "nf4": 1e-5}
"""What is trained -> the largest difference of a weight after six steps, in float64 and in float32."""


def train_here(kind: str, micro: int, folder: Path) -> None:
    """Train as one rank, which is the only one without a launcher; rank 0 saves the result in `folder`."""
    setup = training_setup(PAPER, micro)
    if kind == "none":
        model = add_trained_weights(tiny_model().double(), TrainSpec(adapter="none"), 0)
        setup.teacher = SeparateTeacher(tiny_model(seed=1).double())
        setup.train = setup.train.model_copy(update={"adapter": "none", "learning_rate": 1e-3})
    else:
        tiny_model().save_pretrained(folder / "base")
        base, _ = load_model(folder / "base", "float32", BaseSettings(quantization="nf4"))
        model = add_trained_weights(base, TrainSpec(lora=LoraSpec(rank=4, alpha=8, dropout=0.0)), 0)
    train(model, setup, folder / "work", RecordingReporter(), "x")
    if int(os.environ.get("RANK", 0)) == 0:
        trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "trained.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_give_the_weights_of_one(kind, tmp_path):
    pytest.importorskip("bitsandbytes")
    run_ranks(__file__, kind, tmp_path)
    (tmp_path / "one").mkdir()
    train_here(kind, 4, tmp_path / "one")
    one, two = (load_file(tmp_path / folder / "trained.safetensors") for folder in ("one", "rank0"))
    assert one.keys() == two.keys() and len(one) > 10
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=KINDS[kind])


if __name__ == "__main__":
    own = Path(sys.argv[2], f"rank{os.environ['RANK']}")
    own.mkdir(parents=True)
    # One folder of checkpoints for both.
    (own / "work").symlink_to(Path(sys.argv[2], "work"))
    Path(sys.argv[2], "work").mkdir(exist_ok=True)
    train_here(sys.argv[1], 2, own)
