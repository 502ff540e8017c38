"""Where the teacher's distributions come from during training: the protocol, and forward passes.

A student with an adapter shares its frozen output head with the teacher, so the teacher's hidden state after the final
norm determines its distribution. `teacher_cache.py` has the third source, states that were stored before.

Shapes: N response tokens of a batch, D hidden size.
"""

from typing import Literal, Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tokenuq_ml.kernels.head import Head
from tokenuq_ml.kernels.mean_embeddings import TeacherStates
from tokenuq_ml.models.adapters import use_adapter
from tokenuq_ml.models.forward import head_of, hidden_states
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.training.token_batch import TokenBatch


class TeacherSource(Protocol):
    """Where the teacher's distributions of a batch's response tokens come from; subclass it to add another source."""

    form: Literal["online", "hidden_states", "mean_embeddings"] = "online"
    """A forward pass, or rows of a cache in one of two forms; for the record of costs."""
    head: Head | None = None
    """The head of the hidden states, if it is not the student's."""

    def states(self, model: PeftModel, batch: TokenBatch) -> TeacherStates:
        """Return the teacher's states of the batch's N response tokens.

        Args:
            model: the student, which may hold the teacher's adapter.
            batch: the micro-batch, on the student's device.
        """
        ...


class OnlineTeacher(TeacherSource):
    """Teacher inside the student's model: a forward pass under another adapter, or under none.

    The pass runs without dropout and gradient. The student's adapter is active again afterwards.

    Args:
        adapter: the teacher's adapter in the student's `PeftModel`; None: the base model is the teacher.
        numerics: precision of the pass; default: that of the weights.

    Example:
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

    @torch.no_grad()
    def states(self, model: PeftModel, batch: TokenBatch) -> TeacherStates:
        """Return the hidden states under the teacher's adapter."""
        was_training = model.training
        # With dropout on, the teacher would be another one at every step.
        model.eval()
        try:
            with use_adapter(model, self.adapter):
                return TeacherStates(batch.predicting(hidden_states(model, batch.model_inputs, self.numerics)))
        finally:
            model.train(was_training)


class SeparateTeacher(TeacherSource):
    """Teacher that is another model with its own head, for students that are trained without an adapter.

    Args:
        teacher: a causal language model over the student's vocabulary, on the student's device. It is set to
            evaluation mode and frozen.
        numerics: precision of the forward pass; default: that of the weights.

    Example:
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

    def __init__(self, teacher: PreTrainedModel, numerics: Numerics | None = None):
        self.teacher, self.numerics = teacher.eval().requires_grad_(False), numerics
        self.head = head_of(teacher)

    @torch.no_grad()
    def states(self, model: PeftModel | None, batch: TokenBatch) -> TeacherStates:
        """Return the teacher model's hidden states; `model`, the student, is not used."""
        return TeacherStates(batch.predicting(hidden_states(self.teacher, batch.model_inputs, self.numerics)))
