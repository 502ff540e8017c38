"""Peak memory of a stage's process, by part."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.estimators import LAPLACE_ESTIMATORS, posterior_bytes
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.costs.machine import BALD_PRECISION, Machine

PROCESS_BYTES = 500 * 2**20
"""A process that has imported torch, transformers and peft."""
OPTIMISER_BYTES = 16
"""Per trained number: float32 weight, gradient, and AdamW's two moments."""
SAVED_COPIES = 2
"""Numbers that the backward pass needs, per token, layer, and feature in or out of the layer's linear maps. A step of
2,048 tokens of SmolLM2 peaked at 3,337 MiB; with this value the parts add up to 3,419."""
CHUNK_BYTES, STATES_BYTES = 64 * 2**20, 256 * 2**20
"""Memory budgets of the kernels and of `mc_dropout.py`. Repeated here because those modules import torch; a test
compares them."""
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class GeneratedEvaluation:
    """The prompts of one evaluation that generates answers."""

    name: str
    prompts: float
    prompt_tokens: float
    """Tokens of the mean prompt."""
    new_tokens: int
    """Most tokens of an answer."""


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of a study's processes on a machine, in bytes by part."""

    model: Architecture
    study: StudySpec
    machine: Machine

    def training(self, rank: int) -> dict[str, float]:
        """Return the peak of a training step on a micro-batch of the longest texts that the study allows."""
        model, train, size = self.model, self.study.train, self.machine.itemsize
        rows, length = train.micro_batch_size or train.batch_size, self.study.max_length
        features = sum(i + o for i, o in model.matrices)
        parts = {
            **self._weights(self.study.precision.training),
            "adapter, gradients, optimiser": OPTIMISER_BYTES * model.adapter_parameters(rank),
            "activations": rows * length * model.layers * features * SAVED_COPIES * size,
            "logits": 2 * CHUNK_BYTES,
        }
        if model.attention == "eager":
            # Probabilities in the model's dtype and, from the softmax, in float32.
            square = rows * model.heads * length**2 * model.layers
            parts["attention's squares"] = square * (size + 4)
        return parts

    def inference(self, precision: str) -> dict[str, float]:
        """Return the peak of scoring in a precision that the study names."""
        size = self._size(precision)
        # A text that is longer than a batch is a batch of its own.
        tokens = max(self.machine.batch_tokens, min(self.study.max_length, 2 * self.machine.batch_tokens))
        per_token = self._activations_per_token() * size
        return {
            **self._weights(precision),
            "adapter": size * self.model.adapter_parameters(self.study.train.lora.rank),
            "batches under way": self.machine.parallel_batches * (2 * CHUNK_BYTES + tokens * per_token),
        }

    def bald(self, samples: int) -> dict[str, float]:
        """Return the peak of scoring BALD with `samples` dropout samples."""
        states = self.machine.batch_tokens * samples * self.model.hidden * FLOAT32_BYTES
        return {
            **self.inference(BALD_PRECISION),
            "samples": self.machine.parallel_batches * min(STATES_BYTES, states),
        }

    def posterior(self) -> dict[str, float]:
        """Return the memory of the study's largest Laplace approximation of the output layer, if it names one."""
        spec, model = self.study.uncertainty, self.model
        sizes = [
            posterior_bytes(name, model.vocabulary, model.hidden, spec.samples)
            for name in spec.measured
            if name in LAPLACE_ESTIMATORS
        ]
        return {"posterior": max(sizes)} if sizes else {}

    def evaluation(self, generated: Sequence[GeneratedEvaluation], batch_size: int) -> dict[str, float]:
        """Return the peak of an evaluation in the precision of tables, answers in batches included."""
        precision = self.study.precision.tables
        answers = max((self._answers(one, batch_size, self._size(precision)) for one in generated), default=0.0)
        return {**self.inference(precision), "answers under way": answers}

    def _answers(self, evaluation: GeneratedEvaluation, batch_size: int, size: int) -> float:
        model, prompt = self.model, evaluation.prompt_tokens
        cache = (prompt + evaluation.new_tokens) * model.layers * 2 * model.kv_heads * model.head_dim
        activations = prompt * self._activations_per_token()
        logits = 8 * model.vocabulary
        return min(batch_size, evaluation.prompts) * ((cache + activations) * size + logits)

    def _activations_per_token(self) -> int:
        """Numbers of one layer's activations per token."""
        return 2 * self.model.intermediate + 6 * self.model.hidden

    def _weights(self, precision: str) -> dict[str, float]:
        return {"process": PROCESS_BYTES, "weights": self.model.parameters * self._size(precision)}

    def _size(self, precision: str) -> int:
        return self.machine.in_precision(precision).itemsize
