"""A trained model as its study stored it: its logits on held-out texts, and its weights as one plain model.

Loaded by PEFT and transformers alone, in float32. A quantised base is merged as it computes: the dequantised weights
plus the adapter. The base's own weights plus the adapter would be another model than the one that was trained, and PEFT
would quantise the sum again.

Shapes: O output features, I input features, P positions of a text, V vocabulary.
"""

import gc
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.stored_examples import StoredExamples
from tokenuq_ml.errors import InputError
from tokenuq_ml.hub_errors import first_line
from tokenuq_ml.models.base_settings import BaseSettings
from tokenuq_ml.models.full_weights import is_full_model
from tokenuq_ml.models.load import load_model
from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.models.quantization import dequantised_weight, exact_products, is_quantised_layer
from tokenuq_ml.system_errors import is_system_error

TEXTS = 8
"""Held-out examples on which logits are compared."""
POSITIONS = 32
"""Tokens of each of them: the last ones of the response, which see most of the text."""
LONGEST = 2048
"""Tokens of a text: what is before them is cut."""
HELD_OUT = ("test", "validation", "ood")
"""Splits that examples are taken from, in this order; a study without them has those of train."""


@dataclass(frozen=True)
class TrainedModel:
    """A base model and what was trained of it, as folders."""

    base: Path
    weights: Path
    """Of an adapter, or of a complete model."""
    settings: BaseSettings = BaseSettings()

    @property
    def quantization(self) -> str | None:
        """How the base model is quantised."""
        return self.settings.quantization

    def logits(self, texts: Sequence[TokenizedExample]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the logits of the trained model, and those of the base model, of each text."""
        if is_full_model(self.weights):
            trained = logits_of(_plain(self.weights), texts)
            gc.collect()
            return trained, logits_of(_plain(self.base), texts)
        base = self._base()
        with exact_products(base) if self.quantization else nullcontext():
            model = _adapted(base, self.weights)
            trained = logits_of(model, texts)
            with _without_adapter(model):
                return trained, logits_of(model, texts)

    def merged(self) -> PreTrainedModel:
        """Return the trained model as plain weights in float32.

        Raises:
            InputError: PEFT cannot merge this kind of adapter.
        """
        if is_full_model(self.weights):
            return _plain(self.weights)
        plain = _plain(self.base)
        if self.quantization:
            _take_dequantised(plain, self._base())
            gc.collect()
        model = _adapted(plain, self.weights)
        kind = getattr(model.peft_config["default"].peft_type, "value", "adapter")
        try:
            merged = model.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
            if is_system_error(error):
                raise
            raise InputError(
                f"{self.weights}: PEFT cannot merge this adapter ({kind}): {first_line(error)}; use a kind that it "
                "merges, such as LoRA"
            ) from None
        return merged.requires_grad_(False).eval()

    def _base(self) -> PreTrainedModel:
        # Which attention computes it makes no difference to float32 but the order of sums.
        settings = BaseSettings(quantization=self.settings.quantization)
        return load_model(self.base, "float32", settings)[0]


def held_out_texts(tokens: str | Path) -> list[TokenizedExample]:
    """Return the examples on which logits are compared.

    Args:
        tokens: folder of the study's `tokenized_dataset`.

    Raises:
        InputError: no example has a response token.
    """
    for splits in (HELD_OUT, ("train",)):
        rows = (row for split in splits for row in StoredExamples(tokens, [split]) if any(row.response_mask[1:]))
        if found := list(islice(rows, TEXTS)):
            return found
    raise InputError(
        f"{tokens}: no example has a response token, so an exported model cannot be compared; run the study"
    )


@torch.no_grad()
def logits_of(model: nn.Module, texts: Sequence[TokenizedExample]) -> list[Tensor]:
    """Return `logits_PV` in float32, on the CPU, of each text: those that predict its last response tokens."""
    found, device = [], next(model.parameters()).device
    keeps = "logits_to_keep" in inspect.signature(causal_lm(model).forward).parameters
    for text in texts:
        trained = [index for index, is_trained in enumerate(text.response_mask) if is_trained and index]
        stop = trained[-1] + 1 if trained else 0
        start = max(0, stop - LONGEST)
        # The logits before a token predict it.
        positions = torch.tensor([index - 1 - start for index in trained if index > start][-POSITIONS:])
        ids = torch.tensor([list(map(int, text.input_ids[start:stop]))], device=device)
        # All logits of a long text would be gigabytes.
        options = {"logits_to_keep": positions.to(device)} if keeps else {}
        logits = model(input_ids=ids, use_cache=False, **options).logits[0].float().cpu()
        found.append(logits if keeps else logits[positions].clone())
    return found


def _plain(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()


def _adapted(model: PreTrainedModel, folder: Path) -> PeftModel:
    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if is_system_error(error):
            raise
        raise InputError(f"{folder}: PEFT cannot load this adapter on its base model: {first_line(error)}") from None


@contextmanager
def _without_adapter(model: PeftModel) -> Iterator[None]:
    with model.disable_adapter():
        yield


def _take_dequantised(plain: PreTrainedModel, quantised: PreTrainedModel) -> None:
    """Give a plain model the weights with which the quantised one computes."""
    for name, layer in quantised.named_modules():
        if not is_quantised_layer(layer):
            continue
        own, weight_OI = plain.get_submodule(name), dequantised_weight(layer)
        # GPT-2's layers store their weights transposed.
        own.weight.data = (weight_OI.T.contiguous() if isinstance(own, Conv1D) else weight_OI).to(own.weight.device)
