"""Teachers that are models of their own: the number of plain PyTorch, or a refusal that says what to do."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from tests.support.adapter_outcomes import (
    DISTILL,
    INPUTS,
    assert_same_gradients,
    flags,
    student_logits,
    trainer,
)
from tests.support.peft_kinds import tiny_adapter, tiny_llama, trained
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml import SeparateTeacher
from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels import formulas
from tokenuq_ml.training.token_batch import LabelledInputs

PAPER = {"select": {"by": "loss", "quantile": 0.25}, "rest": {"distill": {}}}


class TestSeparateTeacher:
    def test_full_fine_tuning_with_another_model(self):
        model, other = tiny_llama().requires_grad_(True), tiny_llama(seed=1)
        ours = trainer(model, DISTILL, teacher=SeparateTeacher(other.train()))
        assert not other.training and not any(p.requires_grad for p in other.parameters())
        ours.train()
        plain = tiny_llama().requires_grad_(True)
        logq, logp = student_logits(other).log_softmax(-1).detach(), student_logits(plain).log_softmax(-1)
        loss = (logq.exp() * (logq - logp)).sum(-1).mean()
        loss.backward()
        torch.testing.assert_close(ours.loss, loss.item(), rtol=1e-5, atol=1e-6)
        assert_same_gradients(ours.grads, plain)

    @pytest.mark.parametrize("divergence", formulas.DIVERGENCES)
    @pytest.mark.parametrize(("theirs", "ours"), [(410, 400), (400, 410)])
    def test_padded_vocabularies_are_compared_over_the_ids_of_both(self, divergence, theirs, ours):
        tokenizer = tiny_tokenizer()
        student = trained(tiny_adapter("LORA", tiny_llama(vocabulary=ours)))
        teacher = tiny_llama(vocabulary=theirs, seed=1)
        ablation = {"select": "all", "selected": {"distill": {"divergence": divergence, "temperature": 2.0}}}
        source = SeparateTeacher(teacher, tokenizer=tokenizer)
        got = trainer(student, ablation, teacher=source, processing_class=tokenizer)
        got.train()
        plain = trained(tiny_adapter("LORA", tiny_llama(vocabulary=ours)))
        logp = (student_logits(plain)[:, :400] / 2).log_softmax(-1)
        logq = (student_logits(teacher).detach()[:, :400] / 2).log_softmax(-1)
        logm = torch.logaddexp(logp, logq) - torch.tensor(2.0).log()
        kl = lambda a, b: F.kl_div(b, a, log_target=True, reduction="none").sum(-1)  # noqa: E731
        loss_N = {
            "forward_kl": lambda: kl(logq, logp),
            "reverse_kl": lambda: kl(logp, logq),
            "jsd": lambda: (kl(logq, logm) + kl(logp, logm)) / 2,
        }[divergence]()
        loss_N.mean().backward()
        torch.testing.assert_close(got.loss, loss_N.mean().item(), rtol=1e-4, atol=1e-6)
        assert_same_gradients(got.grads, plain)

    def test_a_teacher_that_does_not_fit_is_refused_by_name(self):
        tokenizer, other = tiny_tokenizer(), tiny_tokenizer()
        other.add_tokens(["<new>"])
        cases = [
            (SeparateTeacher(tiny_llama(vocabulary=410)), None, "teacher has 410 logits and the student 400"),
            (
                SeparateTeacher(tiny_llama(), tokenizer=other),
                tokenizer,
                "differs from the student's in 1 tokens: '<new>'",
            ),
            (SeparateTeacher(tiny_llama(vocabulary=100), tokenizer=tokenizer), tokenizer, "ids up to .* 100 logits"),
            (SeparateTeacher(tiny_llama().bfloat16()), None, "weights are bfloat16 and the student's float32"),
            (tiny_llama().double(), None, "weights are float64 and the student's float32"),
        ]
        for teacher, processing_class, message in cases:
            with pytest.raises(InputError, match=message):
                trainer(tiny_adapter("LORA"), DISTILL, teacher=teacher, processing_class=processing_class)
        elsewhere = LabelledInputs(INPUTS)
        elsewhere.model_inputs = {key: value.to("meta") for key, value in elsewhere.model_inputs.items()}
        with pytest.raises(InputError, match="teacher is on cpu and the batch on meta"):
            SeparateTeacher(tiny_llama()).states(None, elsewhere)

    def test_tokenizers_stored_with_the_models_are_compared(self, tmp_path):
        """Llama-2 and Mistral have 32000 rows each, and different tokens."""
        tokenizer, other = tiny_tokenizer(), tiny_tokenizer()
        other.add_tokens(["<new>"])
        loaded = {}
        for name, its in (("student", tokenizer), ("same", tokenizer), ("other", other)):
            tiny_llama().save_pretrained(tmp_path / name)
            its.save_pretrained(tmp_path / name)
            loaded[name] = LlamaForCausalLM.from_pretrained(tmp_path / name)
        student = get_peft_model(loaded["student"], LoraConfig(target_modules=["q_proj"]))
        trainer(student, DISTILL, teacher=loaded["same"])
        for processing_class in (None, tokenizer):
            with pytest.raises(InputError, match=r"tokenizer differs .* '<new>'"):
                trainer(student, DISTILL, teacher=loaded["other"], processing_class=processing_class)
        vouched = SeparateTeacher(loaded["other"], tokenizer=tokenizer)
        trainer(student, DISTILL, teacher=vouched, processing_class=tokenizer)

    def test_a_teacher_of_the_students_own_weights_is_refused(self):
        """`get_peft_model` adds its layers to the base model in place, so that model is the student."""
        base = tiny_llama()
        student = tiny_adapter("LORA", base)
        trainable = flags(student)[1]
        for teacher in (student, base, SeparateTeacher(base), SeparateTeacher(student)):
            with pytest.raises(InputError, match="shares weights with the student"):
                trainer(student, DISTILL, teacher=teacher)
        assert flags(student)[1] == trainable

    def test_prompt_learning_is_refused_in_a_teacher_too(self):
        with pytest.raises(InputError, match="PROMPT_TUNING"):
            SeparateTeacher(tiny_adapter("PROMPT_TUNING"))
