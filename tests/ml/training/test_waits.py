"""The passes of a step ask an accelerator for no number, and give what a CPU gives."""

import math

import pytest
import torch

from tests.support.dispatched import Waits
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_peft
from tests.support.training import MASKED, MLE, PAPER, lora_weights, training_setup
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.errors import NonFiniteError
from tokenuq_ml.kernels.backend import use_backend
from tokenuq_ml.training import trainer as trainers
from tokenuq_ml.training.trainer import TokenTrainer, train


def ablation(name, **entry):
    return AblationSpec(name=name, **entry)


SUM = ablation("sum", select={"by": "loss", "quantile": 0.5}, selected={"mle": {}, "distill": {"weight": 0.5}})
OTHERS = [
    MLE,
    MASKED,
    SUM,
    ablation("random", select={"by": "random", "quantile": 0.3}, rest={"distill": {}}),
    ablation("jsd", select={"by": "loss", "quantile": 0.3}, rest={"distill": {"divergence": "jsd"}}),
    ablation("focal", select="all", selected="focal"),
    ablation("entropy", select={"by": "student_entropy", "quantile": 0.3}, rest={"distill": {}}),
]


NOT_OURS = "output_layer.py:decoder_states"
"""transformers asks in a pass without an attention mask whether texts are packed (`find_packed_sequence_indices`)."""
ON_THE_HOST = ("cost_counter.py:_read", "non_finite.py:is_finite", "weight_rule.py:part")
"""They read copies that are on the host already. A decision over several micro-batches is made there, before their
passes; a dispatch mode cannot tell the host's tensors from a device's where both are a CPU."""


class WatchedTrainer(TokenTrainer):
    """A TokenTrainer that collects the waits of its passes."""

    waits: list[str]

    def training_step(self, *args, **kwargs):
        with Waits() as seen:
            loss = super().training_step(*args, **kwargs)
        WatchedTrainer.waits += [name for name in seen.names if not name.endswith((NOT_OURS, *ON_THE_HOST))]
        return loss


def trained(backend, spec, tmp_path, micro=4):
    """Return the adapter's weights, the tables and the costs of a training on a backend."""
    model, name = tiny_peft(trained=True), f"{backend}{micro}"
    with use_backend(backend):
        recorder = train(model, training_setup(spec, micro, epochs=1), tmp_path / name, RecordingReporter(), "x")
    return lora_weights(model), recorder


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    monkeypatch.setattr(trainers, "TokenTrainer", WatchedTrainer)
    WatchedTrainer.waits = []


@pytest.mark.parametrize(
    "spec", [PAPER, *(pytest.param(spec, marks=pytest.mark.heavy) for spec in OTHERS)], ids=lambda spec: spec.name
)
def test_the_passes_of_a_step_wait_for_nothing_and_train_the_same(spec, tmp_path):
    expected, cpu = trained("cpu", spec, tmp_path)
    assert WatchedTrainer.waits, "the mode has to see the CPU's nonzero, or it sees nothing"
    WatchedTrainer.waits = []
    weights, recorder = trained("torch", spec, tmp_path)
    assert set(WatchedTrainer.waits) == set()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)
    ours, theirs = recorder.training_log(), cpu.training_log()
    assert ours.drop("loss", "mle_loss", "distill_loss", "grad_norm").equals(
        theirs.drop("loss", "mle_loss", "distill_loss", "grad_norm")
    )
    torch.testing.assert_close(torch.tensor(ours["loss"].to_list()), torch.tensor(theirs["loss"].to_list()))
    columns = ("step", "example_id", "position", "selected", "objective")
    assert recorder.selections()[columns].head(40).equals(cpu.selections()[columns].head(40))
    counts = ("mle_tokens", "distilled_tokens", "summed_tokens", "response_tokens")
    assert [getattr(recorder.costs, name) for name in counts] == [getattr(cpu.costs, name) for name in counts]


@pytest.mark.heavy
def test_a_threshold_waits_for_its_counts_only_and_several_micro_batches_for_nothing_in_their_passes(tmp_path):
    """The counts are read from a copy, which a dispatch mode does not see; no mask is turned into indices."""
    spec = ablation("above", select={"by": "loss", "keep": "above", "threshold": 3.0}, rest={"distill": {}})
    for micro in (4, 2):
        trained("torch", spec if micro == 4 else PAPER, tmp_path, micro)
    assert set(WatchedTrainer.waits) == set()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_the_optimiser_s_step(tmp_path):
    """The flags are read with the gradient's norm; the message names the module as on a CPU."""
    messages = []
    for backend in ("cpu", "torch"):
        model = tiny_peft(trained=True)
        layer = next(module for name, module in model.named_modules() if name.endswith("layers.1.mlp.up_proj"))
        with torch.no_grad():
            layer.base_layer.weight[0, 0] = math.nan
        before = lora_weights(model)
        with use_backend(backend), pytest.raises(NonFiniteError) as caught:
            train(model, training_setup(PAPER, epochs=1), tmp_path / backend, RecordingReporter(), "x")
        assert all(torch.equal(tensor, before[name]) for name, tensor in lora_weights(model).items())
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "layers.1.mlp.up_proj" in messages[0]
