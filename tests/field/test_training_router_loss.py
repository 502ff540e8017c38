"""The load-balancing loss of mixtures of experts, compared with the losses of transformers' and TRL's trainers."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from tests.support.mixtures import labelled_rows, padded, tiny_mixture
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import MIXTURES, examples
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.trainers import Recorded, RecordedOurs, RecordedPlain
from tests.support.training import MLE, training_setup
from tests.support.zoo import VOCAB, tiny_zoo_model
from tokenuq_ml import TokenObjective
from tokenuq_ml.config import LoraSpec
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.gate import output_path
from tokenuq_ml.models.router_loss import has_router_loss, router_coefficient, states_and_router_loss
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.slow


def arguments(folder, kind=TrainingArguments, **changes):
    """Return arguments of two steps, each of two micro-batches."""
    fields = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2, "logging_steps": 1}
    fields |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "learning_rate": 1e-2}
    return kind(str(folder), **{**fields, **changes})


def trained(trainer_class, model, folder, **ours):
    """Return the trainer after its training."""
    data = {"train_dataset": labelled_rows(), "data_collator": padded}
    trainer = trainer_class(model=model, args=arguments(folder), **data, **ours)
    trainer.train()
    return trainer


def assert_equal_trainings(ours, expected) -> None:
    """Assert that losses and last gradients agree."""
    assert ours.losses == pytest.approx(expected.losses, rel=1e-5)
    assert ours.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert (ours.gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("kind", MIXTURES)
def test_losses_and_gradients_are_those_of_the_models_own_forward_pass(kind, tmp_path):
    """All weights are trained, the router's too; batches are padded and steps accumulate."""
    expected = trained(RecordedPlain, tiny_mixture(kind, output_router_logits=True), tmp_path)
    ours = trained(RecordedOurs, tiny_mixture(kind, output_router_logits=True), tmp_path, ablation=MLE)
    assert_equal_trainings(ours, expected)
    logged = [row["aux_loss"] for row in ours.state.log_history if "aux_loss" in row]
    assert len(logged) == 2 and min(logged) > 1.0
    without = trained(RecordedOurs, tiny_mixture(kind), tmp_path, ablation=MLE)
    assert without.losses[0] < ours.losses[0] - 0.1
    assert not any("aux_loss" in row for row in without.state.log_history)


@pytest.mark.parametrize("kind", ["jetmoe", "gpt_oss", "granitemoe", "dbrx", "phimoe", "qwen3_next"])
def test_other_mixtures_have_the_weighted_loss_of_their_own_forward_pass(kind):
    """The coefficient has another name in JetMoE."""
    model = tiny_zoo_model(kind).train()
    inputs = {name: tensor % VOCAB for name, tensor in padded(labelled_rows(3)).items() if name != "labels"}
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    path, own = output_path(model), [model(**inputs, labels=labels, output_router_logits=on) for on in (True, False)]
    states, aux_loss = states_and_router_loss(model, inputs, model.forward, path.from_logits)
    assert states.shape[:2] == labels.shape
    added = router_coefficient(model) * aux_loss
    assert float(added) == pytest.approx(float(own[0].loss - own[1].loss), abs=1e-5) and float(added) > 1e-3


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("granitemoehybrid", {"num_local_experts": 0}), ("qwen3_moe", {"mlp_only_layers": [0, 1]}), ("llama", {})],
)
def test_models_without_experts_have_no_router_loss(kind, fields):
    """The first two classes fail if they are asked for it."""
    model = tiny_zoo_model(kind, **fields)
    assert not has_router_loss(model) and router_coefficient(model) == 0.0


def test_the_term_is_added_to_a_distilling_adapters_training(tmp_path):
    """The rest of the objective does not change: the losses of the first step differ by the weighted term."""
    ablation, trainers = {"select": {"by": "loss", "quantile": 0.5}, "rest": {"distill": {}}}, []
    for switched_on in (False, True):
        base = tiny_mixture("mixtral", output_router_logits=switched_on)
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        trainers.append(trained(RecordedOurs, model, tmp_path, ablation=ablation))
    without, added = trainers
    # The log's row is the mean over the step's two micro-batches, and Trainer adds up their terms.
    term = 0.3 * 2 * next(row["aux_loss"] for row in added.state.log_history if "aux_loss" in row)
    assert sum(added.losses[:2]) - sum(without.losses[:2]) == pytest.approx(term, rel=1e-4)


@pytest.mark.parametrize("coefficient", [None, 0.7, 0.0])
def test_the_term_is_that_of_trl(coefficient, tmp_path):
    """TRL adds it by default, and averages it over the micro-batches of a step."""
    trl = pytest.importorskip("trl")

    class Sft(Recorded, trl.SFTTrainer):
        pass

    class OurSft(Recorded, TokenObjective, trl.SFTTrainer):
        pass

    trainers = []
    for kind, ours in ((Sft, {}), (OurSft, {"ablation": MLE})):
        options = {"router_aux_loss_coef": coefficient, "max_length": None, "bf16": False}
        options |= {"gradient_checkpointing": False, "remove_unused_columns": False}
        options |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
        trainer = kind(
            model=tiny_mixture("olmoe"),
            args=arguments(tmp_path, trl.SFTConfig, **options),
            train_dataset=Dataset.from_list(labelled_rows()),
            data_collator=padded,
            processing_class=tiny_tokenizer(),
            **ours,
        )
        trainer.train()
        trainers.append(trainer)
    expected, ours = trainers
    assert_equal_trainings(ours, expected)
    logs = [[row["aux_loss"] for row in one.state.log_history if "aux_loss" in row] for one in (ours, expected)]
    assert len(logs[1]) == (0 if coefficient == 0.0 else 2)
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_the_pipelines_trainings_add_the_term_without_being_asked(batching, tmp_path):
    """As TRL does. Padding is left out, and packed rows have none."""
    model = add_adapter(tiny_mixture("mixtral"), LoraSpec(rank=4, alpha=8, dropout=0.0), 0)
    setup = training_setup(MLE, count=4, epochs=1)
    setup.train = setup.train.model_copy(update={"batching": batching})
    with torch.no_grad():
        rows = [example.input_ids for example in examples(4)]
        own = model(**_padded_inputs(rows), output_router_logits=True)
    recorder = train(model, setup, tmp_path, RecordingReporter(), "x")
    assert recorder.batching == batching
    assert router_coefficient(model.get_base_model()) == 0.3
    assert recorder.aux_losses == pytest.approx([float(own.aux_loss)], rel=1e-4)


def _padded_inputs(rows):
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([list(ids) + [0] * (longest - len(ids)) for ids in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows]),
    }
