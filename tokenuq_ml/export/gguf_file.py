"""A model folder as a GGUF file, written with the package `gguf`, and compared as transformers reads it.

The order of rows and the offsets of norms are those of llama.cpp. transformers undoes them when it reads the file, so
equal logits show that both are right.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.template_probe import probe_template
from tokenuq_ml.errors import InputError
from tokenuq_ml.export.gguf_settings import Architecture, add_settings, architecture_of, rope_factors
from tokenuq_ml.export.gguf_vocabulary import add_vocabulary
from tokenuq_ml.export.model_folder import require_all_weights, require_same_ids
from tokenuq_ml.export.trained import logits_of
from tokenuq_ml.hub_errors import first_line
from tokenuq_ml.system_errors import is_system_error

TYPES = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
"""Dtype -> type of matrices, and of the file. Vectors, such as norms and biases, are float32 in all of them."""
COMPARED = (
    "head_dim rope_parameters query_pre_attn_scalar final_logit_softcapping attn_logit_softcapping sliding_window "
    "attention_bias mlp_bias layer_types rms_norm_eps hidden_act hidden_activation"
).split()
"""Settings that change logits, and that a reader of GGUF may leave at their default."""


def write_gguf(folder: Path, file: Path, dtype: str, name: str, license: str | None) -> None:
    """Write the model of a folder as a GGUF file.

    Args:
        folder: with weights, config and tokenizer, as transformers loads it.
        file: the file.
        dtype: of the matrices.
        name: of the model.
        license: of the base model, if it is known.

    Raises:
        InputError: the architecture, a setting or the tokenizer is not one that is written here.
    """
    config = AutoConfig.from_pretrained(folder)
    found = architecture_of(config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    rows = model.get_input_embeddings().weight.shape[0]
    writer = gguf.GGUFWriter(file, found.gguf_name)
    try:
        writer.add_type("model")
        writer.add_name(name)
        if license:
            writer.add_license(license)
        writer.add_file_type(TYPES[dtype][1])
        add_settings(writer, config, found, rows)
        add_vocabulary(writer, tokenizer, rows, probe_template(tokenizer).end_of_turn)
        for tensor_name, values, kind in _tensors(model.state_dict(), config, found, TYPES[dtype][0]):
            writer.add_tensor(tensor_name, gguf.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _tensors(
    state: dict[str, Tensor], config: PretrainedConfig, found: Architecture, kind: gguf.GGMLQuantizationType
) -> Iterator[tuple[str, np.ndarray, gguf.GGMLQuantizationType]]:
    """Yield name, values and type of each tensor as llama.cpp has them."""
    names = gguf.get_tensor_name_map(found.number, config.num_hidden_layers)
    if (factors := rope_factors(config)) is not None:
        yield "rope_freqs.weight", factors.numpy(), gguf.GGMLQuantizationType.F32
    for own, tensor in state.items():
        if own == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"GGUF: no name is known for the tensor {own} of a {config.model_type} model")
        values = tensor.float()
        if own.endswith("norm.weight"):
            values = values + found.norm_offset
        if found.permutes and ".self_attn.q_proj." in own:
            values = _by_pairs(values, config.num_attention_heads)
        if found.permutes and ".self_attn.k_proj." in own:
            values = _by_pairs(values, config.num_key_value_heads)
        yield name, values.numpy(), kind if tensor.dim() > 1 else gguf.GGMLQuantizationType.F32


def _by_pairs(values: Tensor, heads: int) -> Tensor:
    """Return rows of queries or keys with the two features of each rotary pair next to each other, not half apart."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape).contiguous()


class ReadBack(NamedTuple):
    """A GGUF file as transformers reads it."""

    logits: list[Tensor]
    notes: list[str]
    """What of the file transformers does not read, as sentences."""


def read_back(
    file: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[TokenizedExample],
) -> ReadBack:
    """Return the logits of a GGUF file as transformers reads it.

    transformers leaves some settings of a file at their defaults, such as the scaling of rotary positions. Where it
    does, the file's tensors are read into a model of the folder's own config.

    Args:
        file: the file.
        folder: of the model that was written.
        tokenizer: of the study; ids of the texts are compared.
        texts: for the comparison.

    Raises:
        InputError: transformers cannot read the file, ids differ, or a tensor is missing.
    """
    try:
        notes = _compare_ids(file, tokenizer, texts)
        own, read = AutoConfig.from_pretrained(folder), AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        unread = [key for key in COMPARED if not _alike(getattr(own, key, None), getattr(read, key, None))]
        if unread:
            shown = ", ".join(f"{key} ({getattr(own, key, None)})" for key in unread)
            notes.append(
                f"transformers' reader of GGUF leaves {shown} at its default; the logits were read with it set"
            )
        options = {"config": own} if unread else {}
        model, loading = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True, **options
        )
        require_all_weights(loading, file.name)
        return ReadBack(logits_of(model.eval(), texts), notes)
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        if is_system_error(error) or isinstance(error, InputError):
            raise
        raise InputError(f"{file.name}: transformers cannot read the GGUF file: {first_line(error)}") from None


def _compare_ids(file: Path, tokenizer: PreTrainedTokenizerBase, texts: Sequence[TokenizedExample]) -> list[str]:
    """Check that the file's tokenizer gives the study's ids; return what to note."""
    where = f"{file.name}, as transformers reads it"
    try:
        require_same_ids(AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), tokenizer, texts, where)
    except InputError:
        # Its class for the architecture may split text in a way of its own, whatever the file says.
        plain = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
        require_same_ids(plain, tokenizer, texts, where)
        return [
            "transformers' AutoTokenizer splits text otherwise than the file says; PreTrainedTokenizerFast does not"
        ]
    return []


def _alike(one: Any, other: Any) -> bool:
    """Return whether two settings are the same; a file holds numbers in float32."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
