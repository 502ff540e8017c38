"""Child process of `<study>/tokenized_dataset`: every example in the model's own tokens."""

import json
from pathlib import Path
from statistics import mean

import polars as pl

from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetResult, StageReporter, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fills the output `tokenized_dataset`."""
    asset = request.assets["tokenized_dataset"]
    fields, max_length = asset.fields, asset.fields["max_length"]
    tokenizer = _load_tokenizer(request.inputs["model"])
    vocabulary = _vocabulary(request.inputs["model"])
    rows, truncated, dropped = [], 0, 0
    for dataset in (fields["dataset"], *fields["ood"]):
        for example in read_table(request.inputs[f"examples/{dataset}"]).iter_rows(named=True):
            try:
                tokens = tokenize_example(tokenizer, example["messages"], max_length)
                _require_embeddings(tokens.input_ids, vocabulary, tokenizer)
            except InputError as error:
                raise InputError(f"model {fields['model']}, example {example['example_id']}: {error}") from None
            truncated += tokens.truncated
            if not any(tokens.response_mask):
                dropped += 1
                continue
            split = "ood" if dataset in fields["ood"] else example["split"]
            rows.append(
                {
                    "example_id": example["example_id"],
                    "dataset": dataset,
                    "split": split,
                    "input_ids": tokens.input_ids,
                    "response_mask": tokens.response_mask,
                }
            )
    frame = pl.DataFrame(
        rows,
        schema={
            "example_id": pl.String,
            "dataset": pl.String,
            "split": pl.String,
            "input_ids": pl.List(pl.Int32),
            "response_mask": pl.List(pl.Boolean),
        },
    )
    _require_every_split(frame, fields, max_length)
    digest = write_table(
        frame,
        "tokenized_dataset",
        asset.outputs["tokenized_dataset"],
        **asset.stamp,
    )
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


def _load_tokenizer(folder: str | Path):
    """As `models.load_tokenizer`, but without torch where the folder allows: it is half of this child's start."""
    config = Path(folder, "tokenizer_config.json")
    named = json.loads(config.read_text()).get("tokenizer_class") if config.is_file() else None
    if named in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _vocabulary(folder: str | Path) -> int:
    """How many tokens the model has embeddings for; mostly more than its tokenizer has, now and then fewer."""
    return json.loads(Path(folder, "config.json").read_text())["vocab_size"]


def _require_embeddings(ids: list[int], vocabulary: int, tokenizer) -> None:
    if max(ids, default=0) >= vocabulary:
        token = max(ids)
        raise InputError(
            f"the token {tokenizer.convert_ids_to_tokens(token)!r} has the id {token}, and the model has "
            f"{vocabulary} embeddings; take it out of the text or the chat template, or resize the model's embeddings"
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
                f"dataset {dataset}: has no response token within {max_length} tokens; raise `max_length` "
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
