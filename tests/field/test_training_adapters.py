"""Adapters and teachers as users bring them: the number of plain PyTorch, or a refusal that says what to do."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.support.adapter_outcomes import (
    DISTILL,
    INPUTS,
    TEXTS,
    flags,
    predicting,
    student_logits,
    teacher_outcome,
    trainer,
)
from tests.support.peft_kinds import add_native_adapter, tiny_adapter, tiny_llama, trained
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml import OnlineTeacher, measure_bald, score_tokens
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.adapters import attach_adapter, use_adapter
from tokenuq_ml.training.token_batch import LabelledInputs

PAPER = {"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {}}}


def frozen_a(**options) -> PeftModel:
    """Return a trained LoRA model whose A matrices the user has frozen."""
    model = trained(tiny_adapter("LORA", **options))
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    return model


class TestFlags:
    @pytest.mark.parametrize("ablation", [{"select": "all"}, PAPER], ids=["mle", "paper"])
    def test_frozen_parts_of_an_adapter_get_no_gradient(self, ablation):
        model = frozen_a()
        before = flags(model)[1]
        ours = trainer(model, ablation)
        ours.args.max_steps = 3
        ours.train()
        assert ours.grads and not any("lora_A" in name for name in ours.grads)
        assert flags(model)[1] == before

    def test_modules_in_different_modes_stay_in_them(self):
        model = frozen_a(lora_dropout=0.1)
        model.train()
        model.base_model.model.model.layers[0].mlp.eval()
        before = flags(model)
        score_tokens(model, tiny_tokenizer(), TEXTS)
        measure_bald(model, tiny_tokenizer(), TEXTS, samples=2)
        for name in (None, "default"):
            OnlineTeacher(name).states(model, LabelledInputs(INPUTS))
            with use_adapter(model, name):
                pass
        assert flags(model) == before

    def test_several_active_adapters_stay_active(self):
        model = tiny_adapter("LORA")
        model.add_adapter("second", LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
        model.base_model.set_adapter(["default", "second"])
        trained(model)
        before, logits = flags(model), student_logits(model.eval())
        for name in (None, "second"):
            OnlineTeacher(name).states(model, LabelledInputs(INPUTS))
            assert model.active_adapters == ["default", "second"] and model.active_adapter == "default"
        assert flags(model)[1] == before[1]
        torch.testing.assert_close(student_logits(model), logits)

    def test_loading_a_teacher_changes_no_flag(self, tmp_path):
        trained(tiny_adapter("LORA")).save_pretrained(tmp_path)
        model = frozen_a(lora_dropout=0.1).train()
        modes, trainable = flags(model)
        attach_adapter(model, tmp_path, "teacher")
        assert {**flags(model)[1], **trainable} == flags(model)[1]
        assert not any(p.requires_grad for name, p in model.named_parameters() if ".teacher." in name)
        # Dropouts are replaced by faster ones, in the mode of those before.
        assert all(flags(model)[0][name] == mode for name, mode in modes.items())


class TestNotInUse:
    def merged(self) -> PeftModel:
        model = trained(tiny_adapter("LORA"))
        model.merge_adapter()
        return model

    def disabled(self) -> PeftModel:
        model = trained(tiny_adapter("LORA"))
        model.base_model.disable_adapter_layers()
        return model

    def native_disabled(self):
        model = tiny_llama()
        add_native_adapter(model, LoraConfig(target_modules=["q_proj"]))
        model.disable_adapters()
        return model

    @pytest.mark.parametrize("state", ["merged", "disabled", "native_disabled"])
    def test_an_adapter_that_is_merged_or_disabled_is_refused(self, state):
        model = getattr(self, state)()
        message = state.removeprefix("native_")
        with pytest.raises(InputError, match=message):
            measure_bald(model, tiny_tokenizer(), TEXTS)
        for ablation in ({"select": "all"}, PAPER):
            with pytest.raises(InputError, match=message):
                trainer(model, ablation)

    def test_an_adapter_that_was_loaded_for_inference_is_refused(self, tmp_path):
        tiny_adapter("LORA").save_pretrained(tmp_path)
        ours = trainer(PeftModel.from_pretrained(tiny_llama(), tmp_path), PAPER)
        with pytest.raises(InputError, match=r"all parameters .* frozen.* is_trainable=True"):
            ours.train()

    def test_an_adapter_that_was_merged_after_the_trainer_was_made_is_refused(self):
        model = tiny_adapter("LORA")
        ours = trainer(model, PAPER)
        model.merge_adapter()
        with pytest.raises(InputError, match="merged"):
            ours.train()

    def test_a_merged_adapter_is_scored_as_it_is(self):
        model, tokenizer = trained(tiny_adapter("LORA")), tiny_tokenizer()
        expected = score_tokens(model, tokenizer, TEXTS)["loss"]
        model.merge_adapter()
        assert (score_tokens(model, tokenizer, TEXTS)["loss"] - expected).abs().max() < 1e-4

    def test_inside_disable_adapter_bald_is_refused_and_scores_are_the_bases(self):
        model, tokenizer = trained(tiny_adapter("LORA")), tiny_tokenizer()
        with model.disable_adapter():
            with pytest.raises(InputError, match="adapters are disabled"):
                measure_bald(model, tokenizer, TEXTS)
            inside = score_tokens(model, tokenizer, TEXTS)["loss"]
        assert (inside - score_tokens(tiny_llama(), tokenizer, TEXTS)["loss"]).abs().max() < 1e-5

    def test_a_mixed_model_is_refused(self):
        model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]), mixed=True)
        for use in (lambda: score_tokens(model, tiny_tokenizer(), TEXTS), lambda: trainer(model, PAPER)):
            with pytest.raises(InputError, match="PeftMixedModel"):
                use()


class TestBaseTeacher:
    def unfrozen_head(self, tie: bool = False) -> PeftModel:
        model = tiny_adapter("LORA", tiny_llama(tie=tie))
        model.base_model.model.lm_head.weight.requires_grad_(True)
        return model

    @pytest.mark.parametrize("tie", [False, True])
    def test_a_head_that_the_user_unfroze_is_the_bases_in_the_teacher(self, tie):
        assert teacher_outcome(lambda: self.unfrozen_head(tie), lambda: tiny_llama(tie=tie)) is None

    @pytest.mark.parametrize("options", [{"bias": "all"}, {}])
    def test_base_tensors_that_may_have_been_trained_before_are_refused(self, options):
        model = tiny_adapter("LORA", tiny_llama(bias=True), **options)
        if not options:
            model.base_model.model.lm_head.weight.requires_grad_(True)
        with pytest.raises(InputError, match=r"trained in place .* teacher=SeparateTeacher"):
            trainer(trained(model), DISTILL)
        # Without a teacher, such a training is right.
        trainer(model, {"select": "all"})

    def test_the_teacher_sees_the_base_also_after_many_steps(self):
        """A training loop of three steps, beside plain PyTorch with a copy of the base model."""
        model = tiny_adapter("LORA", tiny_llama(bias=True), bias="all", modules_to_save=["lm_head"])
        plain, base = copy.deepcopy(model), tiny_llama(bias=True)
        ours = trainer(model, DISTILL)
        ours.args.max_steps, ours.args.learning_rate, ours.args.lr_scheduler_type = 3, 0.1, "constant"
        ours.args.optim = "sgd"
        ours.train()
        parameters = [p for p in plain.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        inputs = {key: value for key, value in INPUTS.items() if key != "labels"}
        for _ in range(3):
            with torch.no_grad():
                logq = predicting(base(**inputs).logits).log_softmax(-1)
            logp = student_logits(plain).log_softmax(-1)
            (logq.exp() * (logq - logp)).sum(-1).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        for (name, got), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6, msg=name)

    def test_a_teachers_adapter_by_transformers_own_integration(self):
        def adapted(*names: str):
            model = tiny_llama()
            for name in names:
                options = {"modules_to_save": ["lm_head"]} if name == "student" else {}
                add_native_adapter(model, LoraConfig(target_modules=["q_proj"], r=2, **options), name)
            for name, parameter in model.named_parameters():
                if ".lora_" in name or "modules_to_save" in name:
                    torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
            return model

        student = adapted("teacher", "student")
        before, logits = flags(student), student_logits(student)
        states = OnlineTeacher("teacher").states(student, LabelledInputs(INPUTS)).hidden_ND
        assert student.active_adapters() == ["student"] and flags(student)[1] == before[1]
        torch.testing.assert_close(student_logits(student), logits)
        torch.testing.assert_close(states @ tiny_llama().lm_head.weight.T, student_logits(adapted("teacher")))

    @pytest.mark.parametrize("with_copies", ["student", "teacher"])
    def test_a_teachers_adapter_has_its_own_head(self, with_copies, tmp_path):
        """Either the student or the teacher trains a copy of the head."""
        options = {with_copies: {"modules_to_save": ["lm_head"]}}
        trained(tiny_adapter("LORA", **options.get("teacher", {}))).save_pretrained(tmp_path)
        student = trained(tiny_adapter("LORA", **options.get("student", {})))
        logits = student_logits(student)
        attach_adapter(student, tmp_path, "teacher")
        got = trainer(student, DISTILL, teacher=OnlineTeacher("teacher"))
        got.train()
        alone = PeftModel.from_pretrained(tiny_llama(), tmp_path)
        logq, logp = student_logits(alone).log_softmax(-1), logits.log_softmax(-1)
        torch.testing.assert_close(got.loss, (logq.exp() * (logq - logp)).sum(-1).mean().item(), rtol=1e-4, atol=1e-6)

    def test_an_adapter_that_is_missing_is_named(self):
        with pytest.raises(InputError, match=r"no adapter 'teacher' for the teacher; it has: default"):
            trainer(tiny_adapter("LORA"), DISTILL, teacher=OnlineTeacher("teacher"))

    def test_a_student_without_an_adapter_needs_another_model(self):
        for teacher in (None, OnlineTeacher()):
            with pytest.raises(InputError, match=r"no adapter.* pass teacher=SeparateTeacher"):
                trainer(tiny_llama().requires_grad_(True), DISTILL, teacher=teacher)
