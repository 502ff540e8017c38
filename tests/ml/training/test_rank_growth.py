"""Rank growth: the rule, and the mask above the active rank (trap 17)."""

import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_model, tiny_peft
from tests.support.training import lora_weights, training_setup
from tokenuq_ml.config import AblationSpec, LoraSpec, RankGrowth
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.training.checkpoints import CheckpointCallback
from tokenuq_ml.training.rank_growth import active_rank
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.slow

GROWING = AblationSpec(name="g", select="all", rank_growth={"start": 1, "fall": 0.5})


def test_the_rank_follows_the_running_mean_and_never_falls():
    growth = RankGrowth(start=8, fall=0.5)
    assert active_rank([], growth, 32) == active_rank([2.0], growth, 32) == active_rank([2.0, 3.0], growth, 32) == 8
    # The mean falls from 2 to 1.6, by a fifth: two fifths of the way from 8 to 32.
    assert active_rank([2.0, 0.0], growth, 32) == 18
    assert active_rank([2.0, 0.0, 50.0], growth, 32) == 18
    assert active_rank([2.0] + [0.0] * 30, growth, 32) == 32


def optimiser_state(folder):
    (checkpoint,) = folder.glob("checkpoint-*")
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]


def test_weights_above_the_active_rank_keep_their_initial_values(tmp_path):
    """Neither gradients, optimiser state nor weight decay change them."""
    model = tiny_peft(trained=False)
    fresh = {name: tensor.clone() for name, tensor in lora_weights(model).items()}
    s = training_setup(GROWING, epochs=1, save_steps=1)
    s.train = s.train.model_copy(update={"weight_decay": 0.1})
    recorder = train(model, s, tmp_path, RecordingReporter(), "x")
    rank = recorder.log_rows[-1]["lora_rank"]
    assert 1 <= rank < 4
    for name, tensor in lora_weights(model).items():
        above = (slice(rank, None),) if "lora_A" in name else (slice(None), slice(rank, None))
        below = (slice(0, rank),) if "lora_A" in name else (slice(None), slice(0, rank))
        assert torch.equal(tensor[above], fresh[name][above])
        assert not torch.equal(tensor[below], fresh[name][below])
    for state in optimiser_state(tmp_path).values():
        moment = state["exp_avg_sq"]
        # A is [4, I] and B [O, 4].
        assert (moment[rank:] if moment.shape[0] == 4 else moment[:, rank:]).abs().max() == 0


def test_a_constant_small_rank_equals_a_small_adapter_of_the_same_scale(tmp_path):
    """Rank 1 of 4 at alpha 8 equals rank 1 at alpha 2 with the same first row."""
    still = AblationSpec(name="g", select="all", rank_growth={"start": 1, "fall": 0.999})
    large = tiny_peft(trained=False)
    s = training_setup(still, epochs=1)
    recorder = train(large, s, tmp_path / "a", RecordingReporter(), "x")
    assert {row["lora_rank"] for row in recorder.log_rows} == {1}
    small, drawn = (
        add_adapter(tiny_model(), LoraSpec(rank=1, alpha=2, dropout=0.0), 0),
        lora_weights(tiny_peft(trained=False)),
    )
    for name, parameter in small.named_parameters():
        if "lora_A" in name:
            parameter.data.copy_(drawn[name][:1])
    train(
        small, training_setup(AblationSpec(name="m", select="all"), epochs=1), tmp_path / "b", RecordingReporter(), "x"
    )
    for name, tensor in lora_weights(small).items():
        part = lora_weights(large)[name][:1] if "lora_A" in name else lora_weights(large)[name][:, :1]
        torch.testing.assert_close(part, tensor, rtol=1e-4, atol=1e-6)


def test_an_interrupted_training_resumes_with_the_same_ranks_and_weights(tmp_path):
    whole = tiny_peft(trained=False)
    log = train(whole, training_setup(GROWING, save_steps=2), tmp_path / "a", RecordingReporter(), "x").log_rows

    first, original = tiny_peft(trained=False), CheckpointCallback.on_step_end

    def stopping(self, args, state, control, **kwargs):
        self.stop_requested = state.global_step == 3
        return original(self, args, state, control, **kwargs)

    CheckpointCallback.on_step_end = stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            train(first, training_setup(GROWING, save_steps=2), tmp_path / "b", RecordingReporter(), "x")
    finally:
        CheckpointCallback.on_step_end = original
    second = tiny_peft(trained=False)
    again = train(second, training_setup(GROWING, save_steps=2), tmp_path / "b", RecordingReporter(), "x").log_rows
    assert [row["lora_rank"] for row in again] == [row["lora_rank"] for row in log]
    for name, tensor in lora_weights(whole).items():
        assert torch.equal(lora_weights(second)[name], tensor)


def test_a_start_above_the_adapters_rank_raises(tmp_path):
    ablation = AblationSpec(name="g", select="all", rank_growth={"start": 9})
    with pytest.raises(InputError, match="rank_growth.start 9 is above the adapter's rank 4"):
        train(tiny_peft(), training_setup(ablation), tmp_path, RecordingReporter(), "x")
