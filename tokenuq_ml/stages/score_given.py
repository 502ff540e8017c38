"""Program of `tokenuq score`: token tables of texts that belong to no study.

    python -m tokenuq_ml.stages.score_given < request.json

Prints a summary, or one JSON object; progress goes to standard error. Makes no asset.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.config import ModelSpec, UncertaintySpec
from tokenuq_ml.config.base_keys import Quantization
from tokenuq_ml.disk import full_disk
from tokenuq_ml.errors import InputError
from tokenuq_ml.hub_errors import first_line
from tokenuq_ml.models.adapter_kinds import check_forward
from tokenuq_ml.models.adapters import attach_adapter
from tokenuq_ml.models.base_settings import BaseSettings
from tokenuq_ml.models.conversion import set_template
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.models.model_sources import load_source
from tokenuq_ml.models.numerics import Numerics, resolve_numerics
from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.models.positions import most_positions
from tokenuq_ml.models.sampled_layers import sampled_layers
from tokenuq_ml.out_of_memory import ran_out
from tokenuq_ml.permissions import not_permitted
from tokenuq_ml.progress import Progress
from tokenuq_ml.redaction import redacted
from tokenuq_ml.reports import given_texts as report
from tokenuq_ml.scoring.given_texts import measure, passes
from tokenuq_ml.stages.given_texts import named_apart, prompts_of, read_texts, tokenized
from tokenuq_ml.system_errors import is_system_error

FAILED, USAGE, INTERRUPTED, READER_GONE = 1, 2, 130, 141
"""Exit codes, as those of every command."""
ADAPTER = "given"
"""Name of the adapter in the model."""
LONGEST = 4096
"""Tokens of a text, if neither the user nor the model's positions say fewer."""


@dataclass(frozen=True)
class GivenModel:
    """The model under which texts are scored."""

    name: str
    folder: str | None = None
    """Of a model in the store."""
    spec: Mapping[str, Any] | None = None
    """The entry of a model that is not in the store."""
    adapter: str | None = None
    """Folder of an adapter, or its id on the hub."""
    adapter_name: str | None = None
    """How the user named the adapter."""
    quantization: Quantization | None = None
    """Of the base model that the adapter was trained on."""
    precision: str = "auto"


@dataclass(frozen=True)
class ScoreRequest:
    """What `tokenuq score` asks for."""

    model: GivenModel
    sources: list[tuple[str, dict[str, Any]]]
    """How the user named each source, and the keys of its entry."""
    uncertainty: dict[str, Any] | None = None
    """Fields of `UncertaintySpec`; None: BALD is not measured."""
    max_length: int | None = None
    limit: int | None = None
    output: str | None = None
    html: str | None = None
    as_json: bool = False
    top: int = 10
    """Tokens that the summary lists."""

    @classmethod
    def read(cls, text: str) -> "ScoreRequest":
        """Return the request that a JSON text holds."""
        fields = json.loads(text)
        return cls(**{**fields, "model": GivenModel(**fields["model"])})


@dataclass
class _Stderr:
    """A reporter that writes to standard error: standard output is the result."""

    tokens: int = field(default=0)

    def info(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def warning(self, message: str) -> None:
        print(f"warning: {message}", file=sys.stderr, flush=True)

    def count_tokens(self, tokens: int) -> None:
        self.tokens += tokens


def run(request: ScoreRequest, scratch: str | Path) -> None:
    """Read, score, write and print.

    Raises:
        InputError: the texts, the model or the adapter cannot be used.
    """
    reporter, examples, formats = _Stderr(), [], {}
    # Before the model is loaded: errors of the data come at once.
    for number, (given, keys) in enumerate(request.sources, 1):
        found, formats[given], warnings = read_texts(keys, given, request.limit, scratch)
        examples += named_apart(found, number) if len(request.sources) > 1 else found
        for warning in warnings:
            reporter.warning(f"{given}: {warning}")
    model, tokenizer, numerics = _loaded(request.model, scratch)
    adapter = None if request.model.adapter is None else ADAPTER
    uncertainty = None if request.uncertainty is None else UncertaintySpec.model_validate(request.uncertainty)
    if uncertainty is not None:
        sampled_layers(model)
    name = next(iter(formats)) if len(formats) == 1 else "texts"
    config = causal_lm(model).config.get_text_config().to_dict()
    length = request.max_length or min(LONGEST, most_positions(config) or LONGEST)
    texts = tokenized(examples, name, tokenizer, request.model.name, config, length)
    for warning in texts.warnings:
        reporter.warning(warning)
    work = sum(len(piece.input_ids) for piece in texts.pieces) * passes(uncertainty, adapter is not None)
    progress = Progress(reporter, "score", work, "tokens")
    tables = measure(model, tokenizer, texts.pieces, numerics, adapter, uncertainty, progress.add)
    facts = {
        "model": request.model.name,
        "adapter": request.model.adapter_name,
        "sources": formats,
        "texts": len(examples) - texts.empty,
        "texts_without_tokens_to_score": texts.empty,
        **numerics.fields(),
    }
    report.write(request.output, tables.tokens)
    report.write_page(request.html, tables, prompts_of(examples), facts)
    files = {key: path for key, path in (("output", request.output), ("html", request.html)) if path}
    if request.as_json:
        print(
            json.dumps({**facts, **report.summary(tables.tokens, request.top, adapter is not None), **files}, indent=1)
        )
    else:
        report.print_summary(tables.tokens, facts, request.top, files)


def _loaded(
    given: GivenModel, scratch: str | Path
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, Numerics]:
    if given.folder is not None:
        model, numerics = load_model(given.folder, given.precision, BaseSettings(quantization=given.quantization))
        tokenizer = load_tokenizer(given.folder)
    else:
        assert given.spec is not None
        spec, numerics = ModelSpec(**given.spec), resolve_numerics(given.precision)
        model, tokenizer, _ = load_source(spec, scratch)
        set_template(spec, tokenizer)
        model = model.requires_grad_(False).to(numerics.device, numerics.dtype).eval()
    if given.adapter is None:
        return model, tokenizer, numerics
    return _adapted(model, given), tokenizer, numerics


def _adapted(model: PreTrainedModel, given: GivenModel) -> PeftModel:
    assert given.adapter is not None
    try:
        adapted = attach_adapter(model, given.adapter, ADAPTER)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if is_system_error(error) or isinstance(error, InputError):
            raise
        raise InputError(
            f"--adapter {given.adapter_name}: PEFT cannot load it on {given.name} ({first_line(error)}); name a folder "
            "with adapter_config.json, or an id on the hub, of an adapter that was trained on this model"
        ) from None
    check_forward(adapted)
    return adapted


def main() -> int:
    """Read the request from standard input; return the exit code."""
    request = ScoreRequest.read(sys.stdin.read())
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenuq-score-"))
        try:
            run(request, scratch)
        except InputError as error:
            return _failed(request, str(error), USAGE)
        except BrokenPipeError:
            # The reader is gone; Python would print a second error when it closes the stream.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return READER_GONE
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return _failed(request, "stopped", INTERRUPTED)
        except Exception as error:
            sentence = _system_sentence(error, scratch)
            if sentence is None:
                raise
            return _failed(request, sentence, FAILED)
    return 0


def _failed(request: ScoreRequest, sentence: str, code: int) -> int:
    """Print why nothing is scored, as JSON too if that was asked for, and return the exit code."""
    if request.as_json:
        print(json.dumps({"error": redacted(sentence), "exit_code": code}, indent=1), flush=True)
    print(redacted(sentence if code == INTERRUPTED else f"error: {sentence}"), file=sys.stderr)
    return code


def _system_sentence(error: Exception, scratch: str) -> str | None:
    """Return the sentence for a full disk, or a lack of memory or rights; None for other errors."""
    if ran_out(error):
        return f"memory ran out ({first_line(error)}); set a smaller --max-length or --rows, or use a smaller model"
    return not_permitted(error) or full_disk(error, scratch)


if __name__ == "__main__":
    sys.exit(main())
