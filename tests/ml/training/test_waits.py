"""The passes of a step ask an accelerator for no number, and give what a CPU gives."""

import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.support.dispatched import Waits
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_peft
from tests.support.training import MASKED, MLE, PAPER, lora_weights, training_setup
from tokenuq_ml import TokenObjective
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.errors import NonFiniteError
from tokenuq_ml.kernels.backend import use_backend
from tokenuq_ml.training import trainer as trainers
from tokenuq_ml.training.finite_steps import STOPPED
from tokenuq_ml.training.trainer import TokenTrainer, train

ROWS = [{"input_ids": [3, 4, 5, 6, 7, 8], "labels": [-100, -100, 5, 6, 7, 8]}] * 32


def trainer_arguments(folder, **options):
    defaults = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": [], "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), use_cpu=True, save_strategy="no", **defaults | options)


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


@pytest.mark.slow
def test_a_fused_optimiser_leaves_the_step_out_and_the_host_reads_a_step_later(tmp_path):
    """With a Trainer that logs nothing; the message is that of the step that failed, and its weights stay."""
    model = tiny_peft(trained=True)
    before, norms = lora_weights(model), []

    class Own(TokenObjective, Trainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * math.nan if self.state.global_step == 1 else loss

        def _get_grad_norm(self, *args, **kwargs):
            norms.append(super()._get_grad_norm(*args, **kwargs))
            return norms[-1]

        def training_step(self, *args, **kwargs):
            self.seen = lora_weights(self.model)
            return super().training_step(*args, **kwargs)

    arguments = trainer_arguments(tmp_path, max_steps=4, optim="adamw_torch_fused", logging_steps=100)
    trainer = Own(model=model, args=arguments, train_dataset=ROWS, ablation=MLE)
    with (
        use_backend("torch"),
        pytest.raises(NonFiniteError, match="^step 2: the norm of the gradient is nan") as caught,
    ):
        trainer.train()
    assert STOPPED in str(caught.value)
    # The first two steps have returned a norm that nobody has read; the third pass ran with the first step's weights.
    assert len(norms) == 2 and all(isinstance(norm, torch.Tensor) for norm in norms)
    after = lora_weights(model)
    assert all(tensor.isfinite().all() and torch.equal(tensor, trainer.seen[name]) for name, tensor in after.items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
