"""A base model that two processes share: each has half of its weights, and the adapter is that of one process."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.ranks import run_ranks
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_model
from tests.support.training import PAPER, training_setup
from tokenuq_ml import process_group
from tokenuq_ml.config import LoraSpec
from tokenuq_ml.models.adapters import add_adapter, save_adapter
from tokenuq_ml.models.load import load_model
from tokenuq_ml.models.sharding import is_sharded, leave_to_fsdp, load_sharded
from tokenuq_ml.training.checkpoints import CheckpointCallback
from tokenuq_ml.training.trainer import train

BOUND = 2e-6
"""Largest difference of a weight after six steps in float32, where 5e-7 was measured."""
TIED = (True, False)
"""Whether the head is the table of embeddings, which FSDP gathers elsewhere."""


def base_folder(folder: Path, tied: bool) -> Path:
    """Return the folder of a base model."""
    return folder / f"tied-{tied}"


def write_bases(folder: Path) -> None:
    for tied in TIED:
        model = tiny_model()
        if not tied:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().flip(0).contiguous())
        model.save_pretrained(base_folder(folder, tied))


def train_here(folder: Path, tied: bool, out: Path) -> None:
    """Train as one rank of those that the environment names, with an interrupt in between; rank 0 saves the adapter.

    With a selection over the optimiser batch, and the model without its adapter as teacher: passes within passes.
    """
    ranks, found = process_group.world_size(), {}
    for is_first in (True, False):
        model, _ = load(base_folder(folder, tied), ranks)
        weights = [weight.data for weight in model.parameters()]
        found["sharded"] = is_sharded(model)
        found["all"] = sum(weight.numel() for weight in weights)
        found["here"] = sum(getattr(weight, "to_local", lambda one=weight: one)().numel() for weight in weights)
        model = add_adapter(model, LoraSpec(rank=4, alpha=8, dropout=0.0), 0)
        setup = training_setup(PAPER, 1, save_steps=50, snapshot_fractions=(0.5,))
        # Weights of a layer are gathered again when it is recomputed.
        setup.train = setup.train.model_copy(update={"gradient_checkpointing": tied and ranks > 1})
        if is_first:
            with interrupted_at(4), pytest.raises(KeyboardInterrupt, match="stopped at step 4 of 6"):
                train(model, setup, out / "work", RecordingReporter(), "x")
    recorder = train(model, setup, out / "work", RecordingReporter(), "x")
    found |= {"resumed_from": recorder.resumed_from, "losses": [row["loss"] for row in recorder.log_rows]}
    if process_group.is_main():
        save_adapter(model, out / "adapter")
    (out / f"rank{process_group.rank()}.json").write_text(json.dumps(found))


def load(folder: Path, ranks: int):
    return load_sharded(folder, "float32", ranks) if ranks > 1 else load_model(folder, "float32")


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Let the last rank be asked to stop at a step."""
    before = CheckpointCallback.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        self.stop_requested |= state.global_step == step and process_group.rank() == process_group.world_size() - 1
        return before(self, args, state, control, **kwargs)

    with patch.object(CheckpointCallback, "on_step_end", on_step_end):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[int, Path]:
    """Processes -> a folder with a training per base model."""
    folder = tmp_path_factory.mktemp("sharding")
    write_bases(folder)
    for tied in TIED:
        out = folder / "1" / str(tied)
        out.mkdir(parents=True)
        train_here(folder, tied, out)
        (folder / "2" / str(tied)).mkdir(parents=True)
    run_ranks(__file__, folder)
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


@pytest.mark.heavy
@pytest.mark.parametrize("tied", TIED)
def test_two_processes_that_share_the_weights_train_what_one_trains(tied, trained):
    one, two = (trained[ranks] / str(tied) for ranks in (1, 2))
    whole = json.loads((one / "rank0.json").read_text())
    ranks = [json.loads((two / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert not whole["sharded"] and whole["here"] == whole["all"]
    assert all(rank["sharded"] and rank["all"] == whole["all"] for rank in ranks)
    # Every weight is on one of them, and neither has much more than half.
    assert (
        sum(rank["here"] for rank in ranks) == whole["all"] and max(rank["here"] for rank in ranks) < 0.6 * whole["all"]
    )
    assert {whole["resumed_from"], *(rank["resumed_from"] for rank in ranks)} == {4}
    for rank in ranks:
        assert rank["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    for place in ("adapter", "work/snapshots/step-000003"):
        first, second = (load_file(folder / place / "adapter_model.safetensors") for folder in (one, two))
        assert set(first) == set(second)
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, rtol=0, atol=BOUND)


def test_a_model_in_one_process_is_not_sharded():
    model = tiny_model()
    assert not is_sharded(model)
    leave_to_fsdp(model)
    assert not hasattr(model, "_ddp_params_and_buffers_to_ignore")


if __name__ == "__main__":
    process_group.start()
    process_group.join()
    for tied in TIED:
        train_here(Path(sys.argv[1]), tied, Path(sys.argv[1], "2", str(tied)))
