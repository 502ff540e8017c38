"""Where the teacher's distributions come from during training: the protocol, and forward passes.

A student with an adapter shares its frozen output head with the teacher, so the teacher's hidden state after the final
norm determines its distribution. `teacher_cache.py` has the third source, states that were stored before.

Shapes: N response tokens of a batch, D hidden size.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.errors import InputError
from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates
from tokenuq_ml.models.adapter_kinds import (
    adapter_configs,
    base_tensors,
    check_base_is_intact,
    check_forward,
    check_in_use,
    has_adapter,
)
from tokenuq_ml.models.adapters import use_adapter
from tokenuq_ml.models.flags import evaluation_mode, set_evaluation_mode
from tokenuq_ml.models.forward import causal_lm, head_of, hidden_states
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.training.teacher_fit import check_teacher_fits
from tokenuq_ml.training.token_batch import TokenBatch


class TeacherSource(Protocol):
    """Where the teacher's distributions of a batch's response tokens come from; subclass it to add another source."""

    form: Literal["online", "hidden_states", "mean_embeddings"] = "online"
    """A forward pass, or rows of a cache in one of two forms; for the record of costs."""
    head: Head | None = None
    """The head of the hidden states, if it is not the student's."""

    def prepare(self, student: PeftModel | PreTrainedModel, tokenizer: Any = None) -> None:
        """Check that the teacher fits the student; called before training, and by default without effect.

        Args:
            student: the model, with the weights that it has before training.
            tokenizer: the student's tokenizer, if the Trainer has one.

        Raises:
            InputError: the teacher's distributions would not be those that the ablation means.
        """

    def prefetch(self, batch: TokenBatch) -> None:
        """Begin to get the states of a batch that `states` will be asked for; by default without effect."""

    def states(self, model: PeftModel, batch: TokenBatch) -> TeacherStates:
        """Return the teacher's states of the batch's N response tokens.

        Args:
            model: the student, which may hold the teacher's adapter.
            batch: the micro-batch, on the student's device.
        """
        ...


class OnlineTeacher(TeacherSource):
    """Teacher inside the student's model: a forward pass under another adapter, or under none.

    The pass runs without dropout and gradient. The student's adapters, all modes and `requires_grad` are afterwards
    what they were. Base tensors that are trained in place (`bias="all"`, a head that the user has unfrozen) have in
    this pass the values that they have before training.

    Args:
        adapter: the teacher's adapter in the student's model; None: the base model is the teacher.
        numerics: precision of the pass; default: that of the weights.

    Examples:
        >>> import torch
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from tokenuq_ml import OnlineTeacher
        >>> from tokenuq_ml.training.token_batch import LabelledInputs
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        ... )
        >>> model = get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules="all-linear"))
        >>> inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]]), "labels": torch.tensor([[-100, -100, 5, 6]])}
        >>> OnlineTeacher().states(model, LabelledInputs(inputs)).hidden_ND.shape
        torch.Size([2, 16])
    """

    def __init__(self, adapter: str | None = None, numerics: Numerics | None = None):
        self.adapter, self.numerics = adapter, numerics
        self._student: weakref.ref[nn.Module] | None = None
        self._trained_in_place: list[tuple[nn.Parameter, Tensor]] = []

    def prepare(self, student: PeftModel | PreTrainedModel, tokenizer: Any = None) -> None:
        """Check that the base model is still known, and keep the base tensors that are trained in place.

        Raises:
            InputError: adapters are merged, disabled, or change the base model (`adapter_kinds.py`); the teacher's
                adapter is missing; or base tensors are trained in place and may have been trained before.
        """
        if not has_adapter(student):
            raise InputError(
                f"a {type(student).__name__} has no adapter, so no teacher is inside it; pass "
                "teacher=SeparateTeacher(model)"
            )
        check_forward(student)
        check_in_use(student, "a teacher inside the student's model")
        check_base_is_intact(student)
        if getattr(causal_lm(student).config, "rescale_every", 0):
            raise InputError(
                f"{type(causal_lm(student)).__name__} scales its weights in place for the teacher's pass, between the "
                "student's forward and backward pass; load it with rescale_every=0, or pass "
                "teacher=SeparateTeacher(base_model)"
            )
        configs = adapter_configs(student)
        if self.adapter is not None and self.adapter not in configs:
            raise InputError(f"the model has no adapter {self.adapter!r} for the teacher; it has: {', '.join(configs)}")
        trained = {name: tensor for name, tensor in base_tensors(student).items() if tensor.requires_grad}
        self._check_base_is_known(student, trained)
        self._trained_in_place = [(tensor, tensor.detach().clone()) for tensor in trained.values()]
        self._student = weakref.ref(student)
        with use_adapter(student, self.adapter):
            # Now, because the gate runs passes of its own when it meets a model.
            self.head = self._head(student)

    def _check_base_is_known(self, student: PeftModel | PreTrainedModel, trained: dict[str, nn.Parameter]) -> None:
        """Check that base tensors that are trained in place were not trained before."""
        if self.adapter is not None and getattr(adapter_configs(student)[self.adapter], "bias", "none") != "none":
            raise InputError(
                f"the teacher's adapter {self.adapter!r} has trained biases of the base model, which all adapters "
                "share; pass teacher=SeparateTeacher(model) with that adapter merged"
            )
        if trained and not _is_fresh(student):
            raise InputError(
                f"{len(trained)} tensors of the base model are trained in place (bias=, or unfrozen), e.g. "
                f"{next(iter(trained))}, and the adapter was trained before, so the base model's own values are "
                "unknown; pass teacher=SeparateTeacher(base_model)"
            )

    @torch.no_grad()
    def states(self, model: PeftModel | PreTrainedModel, batch: TokenBatch) -> TeacherStates:
        """Return the hidden states under the teacher's adapter."""
        if self._student is None or self._student() is not model:
            self.prepare(model)
        with use_adapter(model, self.adapter), _values_of(self._trained_in_place):
            # With dropout on, the teacher would be another one at every step.
            set_evaluation_mode(model)
            hidden_BTD = hidden_states(model, batch.model_inputs, self.numerics)
            self.head = self._head(model)
        return TeacherStates(batch.predicting(hidden_BTD))

    def _head(self, model: PeftModel | PreTrainedModel) -> Head:
        """Return the teacher's head, with the values that weights trained in place have before training."""
        head = head_of(model)
        before = {id(parameter): value for parameter, value in self._trained_in_place}
        weight_VD, bias_V = before.get(id(head.weight_VD), head.weight_VD), before.get(id(head.bias_V), head.bias_V)
        return replace(head, weight_VD=weight_VD, bias_V=bias_V)


class SeparateTeacher(TeacherSource):
    """Teacher that is another model with its own head, also for students that are trained without an adapter.

    If teacher and student have different numbers of logits (padding rows: Qwen2.5 7B has 152064, 0.5B has 151936),
    divergences are between the two softmaxes over the ids that both have.

    Args:
        teacher: a causal language model with the student's tokenizer and dtype, on the student's device. Before
            training it is set to evaluation mode and frozen.
        numerics: precision of the forward pass; default: that of the weights.
        tokenizer: the teacher's tokenizer, compared with the student's (the Trainer's `processing_class`); default:
            the one stored with the model. One of each has to be known if the numbers of logits differ.

    Examples:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from tokenuq_ml import SeparateTeacher
        >>> from tokenuq_ml.training.token_batch import LabelledInputs
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        ... )
        >>> teacher = SeparateTeacher(LlamaForCausalLM(config))
        >>> inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]]), "labels": torch.tensor([[-100, -100, 5, 6]])}
        >>> teacher.states(None, LabelledInputs(inputs)).hidden_ND.shape
        torch.Size([2, 16])
        >>> teacher.head.weight_VD.shape
        torch.Size([32, 16])
    """

    def __init__(
        self,
        teacher: PreTrainedModel | PeftModel,
        numerics: Numerics | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        check_forward(teacher)
        self.teacher, self.numerics, self.tokenizer = teacher, numerics, tokenizer
        self.head = head_of(teacher)

    def prepare(self, student: PeftModel | PreTrainedModel, tokenizer: Any = None) -> None:
        """Check that the teacher fits the student, set it to evaluation mode and freeze it.

        Raises:
            InputError: it shares weights with the student, or differs in vocabulary, tokenizer or dtype.
        """
        passes = None if self.numerics is None else self.numerics.dtype
        check_teacher_fits(self.teacher, student, self.tokenizer, tokenizer, passes)
        self.teacher.eval().requires_grad_(False)

    @torch.no_grad()
    def states(self, model: PeftModel | PreTrainedModel | None, batch: TokenBatch) -> TeacherStates:
        """Return the teacher model's hidden states; `model`, the student, is not used.

        Raises:
            InputError: the teacher is on another device than the batch.
        """
        inputs, device = batch.model_inputs, self.teacher.device
        others = {str(value.device) for value in inputs.values() if isinstance(value, Tensor)} - {str(device)}
        if others and not hasattr(causal_lm(self.teacher), "hf_device_map"):
            raise InputError(
                f"the teacher is on {device} and the batch on {others.pop()}; move the teacher to the student's device"
            )
        if self.teacher.training:
            self.teacher.eval()
        return TeacherStates(batch.predicting(hidden_states(self.teacher, inputs, self.numerics)))


@torch.no_grad()
def _is_fresh(model: PeftModel | PreTrainedModel) -> bool:
    """Return whether the active adapters change nothing yet: they start so, and a trained adapter does change it."""
    if not has_adapter(model):
        return True
    lm = causal_lm(model)
    inputs = {"input_ids": torch.arange(8, device=lm.device)[None] % lm.config.get_text_config().vocab_size}
    with evaluation_mode(model):
        with_adapter = hidden_states(model, inputs).float()
        with use_adapter(model, None):
            without = hidden_states(model, inputs).float()
    return with_adapter.shape == without.shape and bool((with_adapter - without).norm() <= 1e-5 * without.norm())


@contextmanager
def _values_of(kept: list[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Give parameters other values inside the context; graphs that are recorded already are not affected."""
    now = [(parameter, parameter.data) for parameter, _ in kept]
    try:
        for parameter, value in kept:
            parameter.data = value.to(parameter.device)
        yield
    finally:
        for parameter, value in now:
            parameter.data = value
