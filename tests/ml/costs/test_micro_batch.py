"""What a training needs of a device's memory by the keys of its study, and the largest micro-batch that fits."""

from dataclasses import replace

import pytest
import torch

from tests.support.tiny_models import tiny_model, tiny_peft
from tests.support.tiny_plans import tiny_planner
from tokenuq_ml.config import LoraSpec, TrainSpec
from tokenuq_ml.costs import memory
from tokenuq_ml.costs.cards import CARDS, card_named
from tokenuq_ml.costs.efficiency import BY_CARD
from tokenuq_ml.costs.flops import PUBLISHED, Architecture, Step, flops
from tokenuq_ml.costs.machine import LINK_EFFICIENCY, USABLE_MEMORY, Machine, machine_of
from tokenuq_ml.costs.memory import PeakMemory
from tokenuq_ml.costs.micro_batch import largest_micro_batch
from tokenuq_ml.costs.training_state import trained_numbers
from tokenuq_ml.costs.work import Work
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels import backend
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.output_layer import causal_lm, decoder_states

H100, L4 = (machine_of(CARDS[name], "auto") for name in ("h100", "l4"))


def peak(model="Llama-3.1-8B", machine=H100, max_length=2048, quantization=None, attention="auto", **train):
    """Return the memory of a study of a published model."""
    spec = TrainSpec(**{"batch_size": 16, **train})
    study = tiny_planner(train=spec, max_length=max_length, quantization=quantization, attention=attention).study
    return PeakMemory(PUBLISHED[model], study, machine)


def test_rows_of_a_product_are_those_of_the_kernels():
    assert memory.MOST_ROWS == backend.MOST_ROWS and memory.KEPT_BYTES == backend.KEPT_BYTES


@pytest.mark.parametrize("adapter", ["lora", "dora", "none"])
def test_trained_numbers_are_those_of_the_model(adapter):
    train = TrainSpec(adapter=adapter, **({} if adapter == "none" else {"lora": LoraSpec(rank=4, alpha=8)}))
    model = tiny_model() if adapter == "none" else add_adapter(tiny_model(), train.lora, 0, adapter == "dora")
    real = sum(p.numel() for p in model.parameters() if p.requires_grad or adapter == "none")
    plan = tiny_planner(train=train)
    assert trained_numbers(plan.architecture, train, 4) == real
    name = "trained model" if adapter == "none" else "adapter"
    assert plan.work("baseline_teacher").disk[name] == 4 * trained_numbers(plan.architecture, train, plan._rank)


def test_checkpointing_keeps_the_inputs_of_layers_and_computes_the_forward_pass_again():
    plain, less = peak().training(32), peak(gradient_checkpointing=True).training(32)
    model, tokens = PUBLISHED["Llama-3.1-8B"], 16 * 2048
    one_layer = plain["activations"] / model.layers
    assert less["activations"] == pytest.approx(one_layer + 2 * tokens * model.layers * model.hidden)
    assert {name: size for name, size in plain.items() if name != "activations"} == {
        name: size for name, size in less.items() if name != "activations"
    }
    step = tiny_planner().work
    again = tiny_planner(train=TrainSpec(gradient_checkpointing=True)).work
    more = again("baseline_teacher").flop["train"] / step("baseline_teacher").flop["train"]
    assert 1.2 < more < 1.5


def saved_bytes(model, ids_BT):
    """The bytes that a forward pass keeps for the backward pass, besides weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, sizes = [], {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept.append(tensor)
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder_states(causal_lm(model), {"input_ids": ids_BT})
    return sum(sizes.values())


def test_what_a_pass_keeps_is_what_the_plan_counts():
    """Peaks hold temporary tensors too, so the plan counts more than what is kept."""
    model, ids_BT = tiny_peft(dropout=0.1).train(), torch.randint(97, (4, 128))
    sizes = Architecture.from_config(causal_lm(model).config.to_dict())
    counted = 2 * sizes.layers * sum(i + o for i, o in sizes.matrices) * ids_BT.numel() * 4
    assert 0.5 * counted < saved_bytes(model, ids_BT) < counted
    lm = causal_lm(model)
    # Before transformers 5.23 it has the older name alone.
    getattr(lm, "activation_checkpointing_enable", lm.gradient_checkpointing_enable)()
    inputs = sizes.layers * sizes.hidden * ids_BT.numel() * 4
    # And those of the last norm.
    assert inputs <= saved_bytes(model, ids_BT) < 2 * inputs


def test_a_recomputed_step_adds_a_forward_pass():
    plan = tiny_planner()
    step = Step(100, 50, 1000, lora_rank=4)
    plain, again = (flops(plan.architecture, replace(step, recomputes=on)) for on in (False, True))
    assert again.backward - plain.backward == plain.forward and again.total - plain.total == plain.forward


def test_quantised_weights_and_small_moments_need_less():
    model = PUBLISHED["Llama-3.1-8B"]
    layers = model.layers * sum(i * o for i, o in model.matrices)
    plain, nf4, int8 = (peak(quantization=kind).training(32)["weights"] for kind in (None, "nf4", "int8"))
    assert plain - nf4 == pytest.approx(layers * (2 - 4.127 / 8), rel=1e-3) and plain - int8 == layers
    numbers = model.adapter_parameters(32)
    held = lambda name: peak(optimizer=name).training(32)["adapter, gradients, optimiser"]  # noqa: E731
    assert held("adamw_torch") == held("adamw_torch_fused") == 16 * numbers
    assert held("adamw_8bit") == pytest.approx(10.03 * numbers, rel=1e-3)
    assert held("paged_adamw_8bit") == 8 * numbers
    whole = peak(adapter="none").training(0)
    assert whole["weights"] == 4 * model.parameters and whole["adapter, gradients, optimiser"] == 12 * model.parameters


def test_eager_attention_keeps_its_squares_for_any_model_that_asks_for_it():
    plan = tiny_planner(attention="eager")
    assert "attention's squares" in plan.work("baseline_teacher").memory
    assert "attention's squares" not in tiny_planner().work("baseline_teacher").memory


def test_the_largest_micro_batch_is_the_largest_divisor_that_fits():
    found = largest_micro_batch(peak(), 32)
    fits = [
        size
        for size in (1, 2, 4, 8, 16)
        if sum(v for k, v in peak(micro_batch_size=size).training(32).items() if k != "process") <= USABLE_MEMORY * 80e9
    ]
    assert found.examples == max(fits) < found.asked == 16 and found.needed <= found.usable and not found.remedies
    assert largest_micro_batch(peak(gradient_checkpointing=True), 32).examples > found.examples
    assert largest_micro_batch(peak(machine=replace(H100, memory=None)), 32) is None


def test_what_does_not_fit_says_the_first_settings_that_help():
    assert largest_micro_batch(peak(machine=L4), 32).remedies == ("train.gradient_checkpointing: true",)
    long = largest_micro_batch(peak(machine=L4, max_length=8192), 32)
    assert long.examples == 0 and long.remedies[0] == "train.gradient_checkpointing: true"
    assert long.remedies[-1] == "quantization: nf4"
    none = largest_micro_batch(peak("Llama-3.1-70B", machine=L4), 32)
    assert none.examples == 0 and none.remedies == ()


def test_cards_are_known_by_the_names_that_people_write():
    assert [card_named(name, "--device").name for name in ("H100", "RTX 4090", "rtx-4090", "NVIDIA L4")] == [
        *("h100", "4090", "4090", "l4")
    ]
    with pytest.raises(InputError, match="--device: 'H1000' is not known; there are a100, h100"):
        card_named("H1000", "--device")
    assert set(BY_CARD) == set(CARDS)
    assert {"a100", "h100", "h200", "l4", "4090"} <= set(CARDS)
    assert all("assumed" in one.text or "measured" in one.text for one in BY_CARD.values())


def test_generation_on_a_card_waits_for_its_memory():
    work = Work(flop={"generate": 1e12}, reads=1e13)
    assert work.seconds(H100, False) == pytest.approx(1e13 / (LINK_EFFICIENCY * 3.35e12))
    assert Work(flop={"generate": 1e15}, reads=1e9).seconds(H100, False) == pytest.approx(1e15 / (0.5 * 989e12))


def test_float32_work_on_a_card_has_the_share_of_float32():
    work = Work(flop={"score": 1e15}, precision="float32")
    assert work.seconds(H100, False) == pytest.approx(1e15 / (0.58 * 67e12))
    assert work.seconds(L4, False) == pytest.approx(1e15 / (0.6 * 30.3e12))


def test_work_on_a_gpu_has_shares_of_a_gpu_and_says_where_they_were_measured():
    """19% of an H100's peak in training is 24% of the rate at which it computes a large product."""
    work, measured = Work(flop={"train": 1e15}), Machine(783e12, "cuda", "bfloat16", 1, "", 16_384)
    assert work.seconds(H100, False) == pytest.approx(work.seconds(measured, False), rel=0.02)
    assert H100.efficiency.is_measured and "measured: on one H100" in H100.efficiency.text
    assert not L4.efficiency.is_measured
    assert Machine(4e11, "cpu", "bfloat16", 2, "", 512).share("train") == 0.57
