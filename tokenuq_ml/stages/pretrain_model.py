"""Child process of `models/<model>` with `source: pretrain`: train a small model on a synthetic language."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.config import ModelSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.language.documents import read_language
from tokenuq_ml.data.language.tokenizer import word_tokenizer
from tokenuq_ml.data.tokenization import ConversationTokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.conversion import store_model
from tokenuq_ml.models.numerics import resolve_numerics
from tokenuq_ml.seeding import seed_torch
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.convert_model import report_model
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.stages.tracked_stage import require_trackers, tracked_training
from tokenuq_ml.stages.train_adapter import checkpoint_dir
from tokenuq_ml.tables.parquet import content_of, stream_table
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_ml.training.pretraining import pretrain

PRECISION = "float32"
"""All weights are trained: steps of bfloat16 weights would be lost to rounding."""
BATCH = 512
"""Documents that are tokenised at a time."""


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the output `weights`."""
    spec = ModelSpec(**request.assets["models"].fields)
    assert spec.language is not None and spec.pretraining is not None
    require_trackers(request)
    table = Path(request.inputs[f"examples/{spec.language}"])
    tokenizer = word_tokenizer(read_language(spec.language, table).words)
    examples = list(_train_examples(table, tokenizer))
    numerics = resolve_numerics(PRECISION)
    context = StageContext("models", request, reporter, numerics)
    model = _new_model(spec, tokenizer)
    reporter.info(
        f"{spec.name}: {sum(one.numel() for one in model.parameters()):,} parameters, trained from scratch on "
        f"{len(examples):,} documents of {spec.language}"
    )
    work_dir = checkpoint_dir(context, documents=content_of(table))
    tracking = tracked_training(context, work_dir)
    log = pretrain(model, examples, spec.pretraining, numerics, work_dir, reporter, f"models/{spec.name}", tracking)
    figures = store_model(spec, model.cpu(), tokenizer, context.output("weights"))
    figures = {**figures, **log.figures, **numerics.fields(), **(tracking.figures if tracking is not None else {})}
    report_model(spec, figures, context.output("weights"), reporter)
    # Only after the report: an interrupted training resumes, a forced rerun trains from the first step.
    shutil.rmtree(work_dir)


def _train_examples(table: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenizedExample]:
    """Yield the documents of the train split as tokens."""
    conversations = ConversationTokenizer(tokenizer)
    for rows in stream_table(table, list(TABLES["examples"].columns), BATCH):
        examples = [example for example in map(Example.from_row, rows.to_pylist()) if example.split == "train"]
        for example, tokens in zip(examples, conversations.tokenize(examples), strict=True):
            dataset = example.id.partition("/")[0]
            yield TokenizedExample(example.id, dataset, "train", tokens.input_ids, tokens.response_mask)


def _new_model(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a model with new weights, drawn from the seed of its pre-training.

    Raises:
        InputError: transformers knows no such model, or cannot make it of this `config`.
    """
    assert spec.config is not None and spec.pretraining is not None
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": None}
    tokens |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    seed_torch(spec.pretraining.seed)
    try:
        config = AutoConfig.for_model(**{**spec.config, **tokens})
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:
        # What transformers raises for a wrong size depends on the architecture.
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"model {spec.name}: transformers cannot make a model of `config:` in models.yaml ({words}); correct it"
        ) from None
    return model


if __name__ == "__main__":
    runner.main(run)
