"""A trained model as a folder that transformers loads: weights, tokenizer, chat template, generation config."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.template_probe import probe_template
from tokenuq_ml.errors import InputError
from tokenuq_ml.export.trained import logits_of

SHARD_SIZE = "5GB"
"""Most bytes of a file of weights: hubs and file systems take such files, and loaders read them one by one."""


def write_folder(
    model: PreTrainedModel, base: Path, tokenizer: PreTrainedTokenizerBase, dtype: str, folder: Path
) -> None:
    """Write a model, its tokenizer with the chat template, and where generation stops.

    Args:
        model: the weights in float32; rounded here, in place.
        base: folder of the base model, which has the generation config.
        tokenizer: with the template that the study trained with.
        dtype: of the weights.
        folder: an empty folder.
    """
    model = model.to(getattr(torch, dtype))
    model.generation_config = GenerationConfig.from_pretrained(base)
    # Paths of this machine are of no use elsewhere.
    model.config._name_or_path = ""
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    _forget_how_it_was_loaded(folder / "tokenizer_config.json")


def _forget_how_it_was_loaded(file: Path) -> None:
    """Remove from a tokenizer's config what transformers stores of its loading here: offline or not, and from where."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def stored_dtype(base: Path) -> str:
    """Return the dtype in which the base model's weights are stored, by its config."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(base).dtype
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def check_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerBase, texts: Sequence[TokenizedExample]
) -> PreTrainedTokenizerBase:
    """Check that a folder's tokenizer and generation config are those of the study; return the tokenizer.

    Raises:
        InputError: ids, the chat template, or where generation stops differ.
    """
    written = AutoTokenizer.from_pretrained(folder)
    if written.chat_template != tokenizer.chat_template:
        raise InputError(f"{folder}: the written chat template is not the one that the study trained with")
    require_same_ids(written, tokenizer, texts, str(folder))
    end = probe_template(written).end_of_turn
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    if end is not None and end not in (stops if isinstance(stops, list) else [stops]):
        raise InputError(
            f"{folder}: generation would not stop at {written.convert_ids_to_tokens(end)!r}, with which the chat "
            f"template ends a turn; its eos_token_id is {stops}"
        )
    return written


def require_same_ids(
    found: PreTrainedTokenizerBase,
    expected: PreTrainedTokenizerBase,
    texts: Sequence[TokenizedExample],
    where: str,
) -> None:
    """Check that two tokenizers give the same ids for texts.

    Raises:
        InputError: they do not; the message shows the first text.
    """
    for text in texts:
        words = expected.decode(list(map(int, text.input_ids)), clean_up_tokenization_spaces=False)
        ids, own = (each(words, add_special_tokens=False)["input_ids"] for each in (found, expected))
        if ids != own:
            first = next((i for i, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), min(len(ids), len(own)))
            shown = expected.decode(own[max(0, first - 3) : first + 3], clean_up_tokenization_spaces=False)
            raise InputError(f"{where}: its tokenizer gives other ids than the study's, first near {shown!r}")


def loaded_logits(folder: Path, texts: Sequence[TokenizedExample]) -> list[Tensor]:
    """Return the logits of the model in a folder, loaded by transformers alone, computed in float32.

    Raises:
        InputError: the files lack a tensor.
    """
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    require_all_weights(loading, str(folder))
    return logits_of(model.eval(), texts)


def require_all_weights(loading: dict, where: str) -> None:
    """Check that transformers has found every tensor of a model, and only those.

    Raises:
        InputError: one is missing, or has no place in the model.
    """
    for key, what in (("missing_keys", "lacks"), ("unexpected_keys", "has, without a place in the model,")):
        if names := sorted(loading.get(key) or ()):
            raise InputError(f"{where} {what} {len(names)} tensors, such as {names[0]}; nothing is exported")
