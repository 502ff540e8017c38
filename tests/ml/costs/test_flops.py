"""The cost model against PyTorch's own count of operations, published parameter counts and closed forms."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from tests.support.kernels import RuleFromLosses
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tokenuq_ml.config import AblationSpec, LoraSpec, TrainSpec
from tokenuq_ml.costs.flops import PUBLISHED, Architecture, Step, flops, head_products
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates, mean_embeddings
from tokenuq_ml.kernels.training_loss import TeacherTerm, training_loss
from tokenuq_ml.kernels.weight_rule import BatchDecision
from tokenuq_ml.models.adapters import add_trained_weights, use_adapter
from tokenuq_ml.models.gate import output_path
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.teacher import OnlineTeacher, SeparateTeacher
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.slow

PAPER_RULE = {"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {}}}
STEP = Step(padded_tokens=2000, response_tokens=1200, attended=120_000, lora_rank=32)
SMOL = Architecture(30, 576, 1536, 9, 3, 64, 49_152, tied=True)


def counted(work):
    # What the counter leaves out by itself is the product that adds in place.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with counter:
        result = work()
    return counter.get_total_flops(), result


class TestAgainstPyTorch:
    @pytest.mark.parametrize("rank", [1, 4, 16])
    def test_forward_and_backward_agree_with_plain_peft(self, rank):
        model = tiny_model()
        # The counter knows no flash attention of a CPU; what eager attention multiplies it counts.
        model.set_attn_implementation("eager")
        architecture = replace(Architecture.from_config(model.config.to_dict()), attention="eager")
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")).train()
        lm = model.base_model.model
        ids_BT = torch.randint(0, 97, (3, 40))
        forward, hidden_BTD = counted(lambda: lm.model(input_ids=ids_BT, use_cache=False).last_hidden_state)
        head, logits_BTV = counted(lambda: lm.lm_head(hidden_BTD.detach()))
        backward, _ = counted(lambda: hidden_BTD.sum().backward())

        step = Step(padded_tokens=120, response_tokens=120, attended=3 * 40**2 / 2, lora_rank=rank)
        expected = flops(architecture, step)
        assert forward == expected.forward
        assert backward == expected.backward
        assert head == architecture.head_product * 120 and logits_BTV.shape[-1] == 97

    @pytest.mark.parametrize("summed", [0, 5])
    @pytest.mark.parametrize("every_loss", [False, True])
    @pytest.mark.parametrize("losses_first", [False, True])
    @pytest.mark.parametrize("teacher", ["none", "hidden_states", "online", "mean_embeddings"])
    def test_head_products_agree_with_the_training_loss(self, teacher, losses_first, every_loss, summed):
        n, d, v = 40, 16, 97
        hidden_ND, teacher_ND = torch.randn(2, n, d)
        head, label_N = Head(torch.randn(v, d)), torch.randint(0, v, (n,))
        mle_N = (torch.arange(n) < 10).float()
        distill_N = (
            torch.zeros(n) if teacher == "none" else ((torch.arange(n) >= 20) | (torch.arange(n) < summed)).float()
        )
        decision, term = BatchDecision.of_weights(mle_N, distill_N), None
        if teacher == "mean_embeddings":
            term = TeacherTerm(mean_embeddings(teacher_ND, head).states(teacher_ND))
        elif teacher != "none":
            term = TeacherTerm(TeacherStates(teacher_ND))
        products, _ = counted(
            lambda: training_loss(
                hidden_ND,
                head,
                label_N,
                RuleFromLosses(lambda _: decision) if losses_first else decision,
                teacher=term,
                every_loss=every_loss,
            )
        )
        step = Step(
            padded_tokens=n,
            response_tokens=n,
            attended=0,
            mle_share=0.25,
            distilled_share=float(distill_N.mean()),
            summed_share=float((mle_N * distill_N).mean()),
            selection_needs_loss=losses_first,
            teacher=teacher,
            records_losses=every_loss,
        )
        assert products == head_products(step) * n * 2 * d * v

    @pytest.mark.parametrize(
        ("ablation", "micro"),
        [
            ({"select": "all"}, 4),
            ({"select": {"by": "loss", "quantile": 0.25}}, 4),
            ({"select": {"by": "loss", "quantile": 0.25}}, 2),
            ({"select": {"by": "fixed_random", "quantile": 0.25}}, 4),
            ({"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {}}}, 2),
            ({"select": {"by": "divergence", "quantile": 0.25}, "selected": {"dft": {}, "distill": {}}}, 4),
            ({"select": {"by": "divergence", "quantile": 0.25}, "rest": {"distill": {}}}, 2),
        ],
    )
    def test_complete_trainings_agree_with_the_counted_operations(self, ablation, micro, tmp_path):
        """What a run's own record says is what PyTorch counted of it; the teacher has an adapter, as the student."""
        model = tiny_peft()
        model.base_model.model.set_attn_implementation("eager")
        architecture = replace(Architecture.from_config(model.base_model.model.config.to_dict()), attention="eager")
        model.add_adapter("teacher", model.peft_config["default"])
        spec = TrainSpec(epochs=2, batch_size=4, micro_batch_size=micro, lora=LoraSpec(rank=4, alpha=8))
        setup = TrainingSetup(
            examples(11), spec, AblationSpec(name="x", **ablation), 0, FLOAT32, OnlineTeacher("teacher", FLOAT32)
        )
        # The gate's trial passes are made once for each state of the adapters, and belong to no step.
        output_path(model)
        with use_adapter(model, "teacher"):
            output_path(model)
        operations, recorder = counted(lambda: train(model, setup, tmp_path, RecordingReporter(), "x"))
        costs = recorder.costs
        assert costs.steps == 6 and costs.response_tokens == 2 * sum(len(e.positions) for e in setup.examples)
        assert operations == pytest.approx(costs.steps * flops(architecture, costs.step()).total, rel=1e-9)

    @pytest.mark.parametrize(
        "ablation",
        [
            pytest.param({"select": "all"}, marks=pytest.mark.heavy),
            pytest.param({"select": {"by": "loss", "quantile": 0.25}}, marks=pytest.mark.heavy),
            PAPER_RULE,
        ],
    )
    def test_full_trainings_agree_with_the_counted_operations(self, ablation, tmp_path):
        """Two products per map in the backward pass, and one per trained token for the head."""
        model, teacher = (tiny_model(seed=seed) for seed in (0, 1))
        for one in (model, teacher):
            one.set_attn_implementation("eager")
            output_path(one)
        architecture = replace(Architecture.from_config(model.config.to_dict()), attention="eager")
        spec = TrainSpec(epochs=2, batch_size=4, adapter="none")
        setup = TrainingSetup(
            examples(11), spec, AblationSpec(name="x", **ablation), 0, FLOAT32, SeparateTeacher(teacher, FLOAT32)
        )
        model = add_trained_weights(model, spec, 0)
        operations, recorder = counted(lambda: train(model, setup, tmp_path, RecordingReporter(), "x"))
        costs = recorder.costs
        assert costs.trains_base and costs.lora_rank == 0
        assert operations == pytest.approx(costs.steps * flops(architecture, costs.step()).total, rel=1e-9)


class TestArchitecture:
    def test_parameters_of_published_models(self):
        assert {name: model.parameters for name, model in PUBLISHED.items()} == {
            "Llama-3.2-1B": 1_235_814_400,
            "Llama-3.1-8B": 8_030_261_248,
            "Llama-3.1-70B": 70_553_706_496,
        }
        assert SMOL.parameters == 134_515_008

    def test_parameters_of_a_tiny_llama(self):
        model = tiny_model()
        architecture = Architecture.from_config(model.config.to_dict())
        assert architecture.parameters == sum(parameter.numel() for parameter in model.parameters())

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("llama", Architecture(2, 32, 48, 4, 2, 8, 97, tied=True)),
            ("gemma2", Architecture(2, 32, 48, 4, 2, 8, 97, tied=True, attention="eager")),
            ("gpt2", Architecture(2, 32, 128, 4, 4, 8, 97, gated_mlp=False, tied=True)),
        ],
    )
    def test_configs_saved_by_transformers_are_read(self, kind, expected, tmp_path):
        tiny_model(kind).config.save_pretrained(tmp_path)
        assert Architecture.from_config(tmp_path) == expected
        assert Architecture.from_config(tmp_path / "config.json") == expected
        nested = {"model_type": "gemma3", "text_config": json.loads((tmp_path / "config.json").read_text())}
        assert Architecture.from_config(nested) == expected

    def test_config_errors_name_the_file_and_the_fix(self, tmp_path):
        with pytest.raises(InputError, match=r"config\.json: not a model configuration"):
            Architecture.from_config(tmp_path)
        (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}')
        with pytest.raises(InputError, match=r"config\.json: has no num_attention_heads or n_head"):
            Architecture.from_config(tmp_path)
        with pytest.raises(InputError, match="mixture of experts"):
            Architecture.from_config({"num_hidden_layers": 2, "num_local_experts": 8})


class TestFlops:
    def test_closed_form_of_a_small_case(self):
        """One layer, D=4, I=6, one head of 4, V=10, rank 1; 5 tokens of one sequence, 3 of them trained."""
        model = Architecture(1, 4, 6, 1, 1, 4, 10)
        base = 2 * 5 * (4 * 16 + 3 * 24)
        adapters = 2 * 5 * (4 * 8 + 3 * 10)
        square = 2 * 5 * 5 * 4
        first_input = 2 * 5 * 3 * (16 + 4)
        step = Step(padded_tokens=5, response_tokens=3, attended=12.5, lora_rank=1, teacher="online")
        flash, eager = flops(model, step), flops(replace(model, attention="eager"), step)
        assert flash.forward == base + adapters + square and eager.forward == base + adapters + 2 * square
        assert flash.backward == base + 2 * adapters + 2.5 * square - first_input
        assert eager.backward == base + 2 * adapters + 4 * square - first_input
        assert flash.head == 2 * 3 * 2 * 4 * 10
        assert flash.teacher == flash.forward and flash.selection == 0
        assert flash.total == flash.forward + flash.head + flash.backward + flash.teacher
        assert flash.head_share == flash.head / flash.total

    def test_a_large_model_takes_about_four_flops_per_parameter_and_token(self):
        """A frozen base costs 2 forward and 2 backward, where full training costs 6."""
        model = PUBLISHED["Llama-3.1-70B"]
        step = Step(padded_tokens=1000, response_tokens=0, attended=500, lora_rank=0)
        outside = 2 * model.vocabulary * model.hidden
        assert flops(model, step).total == pytest.approx(4 * 1000 * (model.parameters - outside), rel=0.01)

    def test_head_products_per_response_token(self):
        paper = replace(STEP, mle_share=0.25, distilled_share=0.75, selection_needs_loss=True, teacher="online")
        assert head_products(STEP) == 2
        assert head_products(replace(STEP, mle_share=0.25)) == 0.5
        assert head_products(replace(STEP, mle_share=0.25, records_losses=True)) == 0.5 + 0.75
        assert head_products(replace(STEP, mle_share=0.25, selection_needs_loss=True, selection_passes=1)) == 0.5
        assert head_products(replace(STEP, mle_share=0.25, selection_needs_loss=True)) == 1.5
        assert head_products(paper) == head_products(replace(paper, teacher="hidden_states")) == 0.5 + 2.25 + 1
        assert head_products(replace(paper, teacher="mean_embeddings")) == 2
        assert head_products(replace(paper, selection_needs_loss=False)) == 2.75

    def test_a_selection_pass_costs_a_forward_pass_and_saves_the_loss_product(self):
        one = replace(STEP, mle_share=0.25, selection_needs_loss=True)
        several = replace(one, selection_passes=1)
        a, b = flops(SMOL, one), flops(SMOL, several)
        product = SMOL.head_product * STEP.response_tokens
        assert b.selection == a.forward + product and a.head - b.head == product
        assert b.total - a.total == pytest.approx(a.forward)

    def test_selection_saves_only_head_products(self):
        few, all_of_them = flops(SMOL, replace(STEP, mle_share=0.01)), flops(SMOL, STEP)
        assert (few.forward, few.backward) == (all_of_them.forward, all_of_them.backward)
        assert 0 < few.head < all_of_them.head

    @pytest.mark.parametrize(
        "change",
        [
            {"padded_tokens": 2001},
            {"response_tokens": 1201},
            {"attended": 120_001},
            {"lora_rank": 33},
            {"selection_needs_loss": True},
            {"selection_passes": 1},
            {"teacher": "online"},
        ],
    )
    def test_more_of_anything_costs_more(self, change):
        assert flops(SMOL, replace(STEP, **change)).total > flops(SMOL, STEP).total

    def test_the_heads_share_is_smaller_in_larger_models(self):
        shares = [flops(model, STEP).head_share for model in PUBLISHED.values()]
        assert shares == sorted(shares, reverse=True) and shares[-1] < 0.02 < 0.1 < shares[0]

    def test_cache_bytes_per_response_token(self):
        assert SMOL.cache_bytes() == {"hidden_states": 1152, "mean_embeddings": 1156, "logits": 98_304}
        assert SMOL.cache_bytes(4)["mean_embeddings"] == 2308

    def test_distillation_needs_a_teacher(self):
        with pytest.raises(ValueError, match="but teacher is 'none'"):
            replace(STEP, distilled_share=0.5)
