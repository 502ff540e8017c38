"""Store base models in one form: safetensors, config, tokenizer.

Also ensures what later stages rely on: a chat template, generation that stops at the end of a turn, and logits that
are computed here as the model computes them (`gate.py`).
"""

from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.config import ModelSpec
from tokenuq_ml.data.chat_template import name_template
from tokenuq_ml.data.template_probe import probe_template
from tokenuq_ml.data.tokenization import default_template
from tokenuq_ml.errors import InputError, NonFiniteError
from tokenuq_ml.models.adapter_targets import check_adapter, frozen_matrices
from tokenuq_ml.models.gate import output_path
from tokenuq_ml.models.model_sources import load_source
from tokenuq_ml.models.non_finite import non_finite_weights

Figures = dict[str, int | str | None]


def convert(spec: ModelSpec, folder: str | Path, scratch: str | Path | None = None) -> Figures:
    """Write a published base model as safetensors, config, tokenizer and chat template into `folder`.

    Args:
        spec: the model.
        folder: where the model is written.
        scratch: folder of a temporary file, as large as the model's; default: the system's.

    Returns:
        The figures of `store_model`, and the `commit` of a model from the Hugging Face Hub.

    Raises:
        InputError: The source cannot be loaded or is not a plain causal language model; or as `store_model`.
    """
    model, tokenizer, commit = load_source(spec, scratch)
    return {**store_model(spec, model, tokenizer, folder), **({"commit": commit} if commit else {})}


def store_model(
    spec: ModelSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> Figures:
    """Write a base model as safetensors, config, tokenizer and chat template into `folder`.

    Returns:
        Figures of the model: `parameters`, `vocabulary` (rows of the head), `tokens` (of the tokenizer), `hidden_size`,
        `architecture`, `stored_dtype`, `chat_template` (where it is from), `end_of_turn` (the token that ends a turn;
        None if no special token does), `chat_template_notes` (what it does otherwise than usual templates, one
        sentence per line), `logits` (why the model's own forward pass computes them, if it has to), and `not_adapted`
        (kinds of matrices that the adapter leaves frozen, such as experts).

    Raises:
        InputError: The chat template does not render answers as they are generated; the gate refuses the model, or
            PEFT cannot adapt it.
    """
    folder = Path(folder)
    template = set_template(spec, tokenizer)
    try:
        report = probe_template(tokenizer)
    except InputError as error:
        raise InputError(f"model {spec.name}: {error}") from None
    end = report.end_of_turn
    _stop_generation_at(model, end)
    try:
        _check_weights(model)
        path = output_path(model)
        check_adapter(model)
    except InputError as error:
        raise InputError(f"model {spec.name}: {error}") from None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": path.vocabulary,
        "tokens": len(tokenizer),
        "hidden_size": model.config.get_text_config().hidden_size,
        "architecture": type(model).__name__,
        "stored_dtype": str(model.dtype).removeprefix("torch."),
        "chat_template": template,
        "end_of_turn": None if end is None else tokenizer.convert_ids_to_tokens(end),
        **({"logits": f"by the model's own forward pass, because {path.reason}"} if path.from_logits else {}),
        **({"not_adapted": ", ".join(frozen)} if (frozen := frozen_matrices(model)) else {}),
        **({"chat_template_notes": "\n".join(report.notes)} if report.notes else {}),
    }


def _check_weights(model: PreTrainedModel) -> None:
    """Refuse a model with damaged weights, also those that the gate's few tokens do not use, such as embeddings."""
    broken = non_finite_weights(model.named_parameters())
    if broken:
        raise NonFiniteError(
            f"{len(broken)} of its weights have values that are not finite (NaN or Inf), first {broken[0]}; download "
            "the model again"
        )


def set_template(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the tokenizer its chat template; return where the template is from.

    Raises:
        InputError: it has none, and no end-of-sequence token for the default one.
    """
    if spec.chat_template is not None:
        tokenizer.chat_template = spec.template_text
        name_template(tokenizer, spec.chat_template)
        return "given in models.yaml"
    if tokenizer.chat_template:
        return "the model's own"
    if not tokenizer.eos_token:
        raise InputError(
            f"model {spec.name}: the tokenizer has no chat template, and no end-of-sequence token for the default one; "
            f"set `chat_template:` of {spec.name} in models.yaml to a Jinja file"
        )
    tokenizer.chat_template = default_template()
    return "tokenuq's default"


def _stop_generation_at(model: PreTrainedModel, end: int | None) -> None:
    """Add the end of a turn to the tokens that stop generation; the configuration of a base model does not have it."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        # Some published configurations contradict themselves, and transformers refuses to save them. Their sampling
        # settings are not used here.
        model.generation_config = GenerationConfig.from_model_config(model.config)
    own = model.generation_config.eos_token_id
    ends = set(own) if isinstance(own, (list, tuple)) else {own}
    ends = sorted((ends | {end}) - {None})
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends or None
