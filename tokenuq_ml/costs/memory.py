"""Peak memory of a stage's process, by part."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenuq_ml.config import StudySpec
from tokenuq_ml.config.estimators import LAPLACE_ESTIMATORS, posterior_bytes
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.costs.machine import BALD_PRECISION, Machine
from tokenuq_ml.costs.training_state import held_bytes, trained_numbers

PROCESS_BYTES = 500 * 2**20
"""A process that has imported torch, transformers and peft."""
QUANTISED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""Per weight of a layer's linear map. nf4: 4 bits, an 8-bit scale per block of 64, and a float32 scale of these for
every 256 blocks."""
SAVED_COPIES = 2
"""Numbers that the backward pass needs, per token, layer, and feature in or out of the layer's linear maps. A step of
2,048 tokens of SmolLM2 peaked at 3,337 MiB; with this value the parts add up to 3,419."""
CHUNK_BYTES, STATES_BYTES = 64 * 2**20, 256 * 2**20
"""Memory budgets of the kernels and of `mc_dropout.py`. Repeated here because those modules import torch; a test
compares them."""
FLOAT32_BYTES = 4


TRAINED = "adapter, gradients, optimiser"
"""Name of the part of what is trained."""
MOST_ROWS, KEPT_BYTES = 2048, 2**30
"""Rows of a product on an accelerator, and the most that it keeps of the product of all tokens, of
`kernels/backend.py`."""


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
        tokens = (train.micro_batch_size or train.batch_size) * self.study.max_length
        layers, inputs = model.layers, 0
        if train.gradient_checkpointing:
            # Activations of one layer at a time, and the inputs of all.
            layers, inputs = 1, tokens * model.layers * model.hidden
        features = sum(i + o for i, o in model.matrices)
        parts = {
            **self._weights(self.study.precision.training, is_trained=True),
            TRAINED: held_bytes(model, train, rank),
            "activations": (tokens * layers * features * SAVED_COPIES + inputs) * size,
            "logits": 2 * self._chunk_bytes(),
        }
        if self.machine.device != "cpu":
            # Of an ablation that selects by losses: the same logits serve losses and gradients.
            parts["kept logits"] = min(KEPT_BYTES, tokens * model.vocabulary * size)
        if model.attention == "eager":
            # Probabilities in the model's dtype and, from the softmax, in float32.
            square = tokens * self.study.max_length * model.heads * layers
            parts["attention's squares"] = square * (size + 4)
        if train.adapter == "none" and size == 2:
            # Autocast keeps a copy of weights that are trained until the backward pass ends.
            parts["weights in bfloat16"] = model.parameters * size
        if self.study.quantization is not None:
            # Of the largest map, which is dequantised for its product.
            parts["dequantised map"] = max(i * o for i, o in model.matrices) * size
        return parts

    def _chunk_bytes(self) -> float:
        """Return the bytes of a block of logits and of what its reductions hold (`kernels/backend.py`)."""
        if self.machine.device == "cpu":
            return CHUNK_BYTES
        return MOST_ROWS * self.model.vocabulary * self.machine.itemsize

    def inference(self, precision: str) -> dict[str, float]:
        """Return the peak of scoring in a precision that the study names."""
        size = self._size(precision)
        # A text that is longer than a batch is a batch of its own.
        tokens = max(self.machine.batch_tokens, min(self.study.max_length, 2 * self.machine.batch_tokens))
        per_token = self._activations_per_token() * size
        train = self.study.train
        # Without an adapter, a trained model is a second set of weights.
        trained = size * trained_numbers(self.model, train, train.lora.rank)
        return {
            **self._weights(precision),
            "adapter" if train.adapter != "none" else "trained model": trained,
            "batches under way": self.machine.parallel_batches * (2 * self._chunk_bytes() + tokens * per_token),
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

    def weight_bytes(self, precision: str) -> float:
        """Return the bytes of the base model's weights in a precision that the study names."""
        return self._weights(precision)["weights"]

    def _weights(self, precision: str, is_trained: bool = False) -> dict[str, float]:
        """Return the bytes of a process and of the base model, whose weights are float32 if they are trained."""
        model, kind = self.model, self.study.quantization
        size = 4 if is_trained and self.study.train.adapter == "none" else self._size(precision)
        quantised = 0 if kind is None else model.layers * sum(i * o for i, o in model.matrices)
        weights = (model.parameters - quantised) * size + quantised * (QUANTISED_BYTES[kind] if kind else 0)
        return {"process": PROCESS_BYTES, "weights": weights}

    def _size(self, precision: str) -> int:
        return self.machine.in_precision(precision).itemsize
