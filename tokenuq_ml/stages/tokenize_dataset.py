"""Child process of `<study>/tokenized_dataset`: every example in the tokens of the model."""

import json
from pathlib import Path
from statistics import mean

import polars as pl

from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table

SCHEMA = {
    "example_id": pl.String,
    "dataset": pl.String,
    "split": pl.String,
    "input_ids": pl.List(pl.Int32),
    "response_mask": pl.List(pl.Boolean),
}


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the output `tokenized_dataset`."""
    asset = request.assets["tokenized_dataset"]
    frame, truncated, dropped = _tokenize(request, asset.fields)
    max_length = asset.fields["max_length"]
    _require_every_split(frame, asset.fields, max_length)
    digest = write_table(frame, "tokenized_dataset", asset.outputs["tokenized_dataset"], **asset.stamp)
    reporter.info(
        f"{request.study}: {len(frame):,} examples, {truncated} cut at {max_length} tokens, {dropped} dropped"
    )
    reporter.done(
        AssetResult(
            stage="tokenized_dataset",
            data_version=digest,
            metrics={**_counts(frame), "truncated": truncated, "dropped": dropped},
        )
    )


def _tokenize(request: StageRequest, fields: dict) -> tuple[pl.DataFrame, int, int]:
    """Return the tokenised examples, how many were cut, and how many were dropped since no response token is left."""
    tokenizer = load_tokenizer(request.inputs["model"])
    vocabulary = _vocabulary(request.inputs["model"])
    rows, truncated, dropped = [], 0, 0
    for dataset in (fields["dataset"], *fields["ood"]):
        for example in read_table(request.inputs[f"examples/{dataset}"]).iter_rows(named=True):
            try:
                tokens = tokenize_example(tokenizer, example["messages"], fields["max_length"])
                _require_embeddings(tokens.input_ids, vocabulary, tokenizer)
            except InputError as error:
                raise InputError(f"model {fields['model']}, example {example['example_id']}: {error}") from None
            truncated += tokens.truncated
            if not any(tokens.response_mask):
                dropped += 1
                continue
            split = "ood" if dataset in fields["ood"] else example["split"]
            rows.append((example["example_id"], dataset, split, tokens.input_ids, tokens.response_mask))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row"), truncated, dropped


def load_tokenizer(folder: str | Path):
    """Load the tokenizer as `models.load_tokenizer` does, without torch if possible: torch takes half of the start."""
    config = Path(folder, "tokenizer_config.json")
    named = json.loads(config.read_text()).get("tokenizer_class") if config.is_file() else None
    if named in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _vocabulary(folder: str | Path) -> int:
    """Return the number of the model's embeddings: mostly more than the tokenizer has tokens, sometimes fewer."""
    return json.loads(Path(folder, "config.json").read_text())["vocab_size"]


def _require_embeddings(ids: list[int], vocabulary: int, tokenizer) -> None:
    if max(ids, default=0) >= vocabulary:
        token = max(ids)
        raise InputError(
            f"the token {tokenizer.convert_ids_to_tokens(token)!r} has the id {token}, and the model has only "
            f"{vocabulary} embeddings; remove it from the text or the chat template, or resize the model's embeddings"
        )


def _require_every_split(frame: pl.DataFrame, fields: dict, max_length: int) -> None:
    for split in ("train", "validation", "test"):
        if frame.filter(pl.col("split") == split).is_empty():
            raise InputError(
                f"dataset {fields['dataset']}: split {split!r} has no response token within {max_length} "
                "tokens; raise `max_length` of the study in studies.yaml"
            )
    for dataset in fields["ood"]:
        if frame.filter(pl.col("dataset") == dataset).is_empty():
            raise InputError(
                f"dataset {dataset}: no response token within {max_length} tokens; raise `max_length` "
                "of the study in studies.yaml, or name a dataset with answers"
            )


def _counts(frame: pl.DataFrame) -> dict[str, int | float]:
    lengths = frame["input_ids"].list.len().to_list()
    by_split = frame.group_by("split").agg(pl.len(), tokens=pl.col("response_mask").list.sum().sum()).sort("split")
    counts = {}
    for split, examples, tokens in by_split.iter_rows():
        counts |= {f"examples_{split}": examples, f"response_tokens_{split}": tokens}
    return {
        **counts,
        "longest": max(lengths),
        "mean_length": mean(lengths),
        "response_share": frame["response_mask"].list.sum().sum() / sum(lengths),
    }


if __name__ == "__main__":
    runner.main(run)
