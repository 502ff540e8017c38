"""Child process of `<study>/tokenized_dataset`: every example in the tokens of the model.

Examples are read, tokenised and written a batch at a time, so that memory does not grow with the data.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.language.truth import TruthRows
from tokenuq_ml.data.raw_text import divide
from tokenuq_ml.data.tokenization import ConversationTokenizer, ConversationTokens
from tokenuq_ml.data.tokenizer_files import load_tokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.positions import require_positions
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetRequest, AssetResult, StageReporter, StageRequest
from tokenuq_ml.stages.token_rows import DatasetTokens, Rejection, TokenizationRules, require_embeddings
from tokenuq_ml.tables.parquet import TableWriter, stream_table
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_ml.tensor_digest import joined_digest

TRUTH = "token_truth"
BATCH = 512
"""Examples per call of the tokenizer, which encodes them in parallel."""


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the outputs `tokenized_dataset` and `rejected_examples`, and `token_truth` if the study has one."""
    asset = request.assets["tokenized_dataset"]
    data = ("dataset", "ood", "only_ood")
    rules = TokenizationRules(**{key: value for key, value in asset.fields.items() if key not in data})
    # Tables are written in the order of ids, which begin with the dataset's name and a slash.
    names = sorted((asset.fields["dataset"], *asset.fields["ood"]), key=lambda name: f"{name}/")
    datasets = {name: DatasetTokens(name, rules, limited=name == asset.fields["dataset"]) for name in names}
    totals = _Totals()
    digest = _write(request, asset, datasets, totals)
    for dataset in datasets.values():
        for warning in dataset.warnings:
            reporter.warning(f"{request.study}: {warning}")
    truncated = sum(dataset.truncated for dataset in datasets.values())
    dropped = sum(dataset.rejected.total() for dataset in datasets.values())
    reporter.info(
        f"{request.study}: {totals.examples.total():,} examples, {truncated} cut at {rules.max_length} tokens, "
        f"{dropped} dropped"
    )
    found = [dataset.metrics for dataset in datasets.values()]
    metrics = {**totals.metrics, "truncated": truncated, "dropped": dropped}
    for each in found:
        metrics |= each
    reporter.done(AssetResult(stage="tokenized_dataset", data_version=digest, metrics=metrics))


def _write(request: StageRequest, asset: AssetRequest, datasets: dict[str, DatasetTokens], totals: "_Totals") -> str:
    """Write the tables; return the content hash of `tokenized_dataset`, and of `token_truth` if there is one.

    Raises:
        InputError: the examples of a dataset cannot be used; no table is written then.
    """
    tokenizer = load_tokenizer(request.inputs["model"])
    with (
        TableWriter("tokenized_dataset", asset.outputs["tokenized_dataset"], **asset.stamp) as table,
        TableWriter("rejected_examples", asset.outputs["rejected_examples"], **asset.stamp) as rejected,
        _TruthTable(asset, tokenizer) as truth,
    ):
        conversations = _ConversationReader(request, tokenizer, next(iter(datasets.values())).rules)
        for name, dataset in datasets.items():
            for batch in conversations.read(name, dataset):
                decided = [(example, tokens, dataset.decide(example, tokens)) for example, tokens in batch]
                rows = [_row(name, dataset, *each) for each in decided if each[2] is None]
                left_out = [_rejected(name, dataset, example, why) for example, _, why in decided if why is not None]
                totals.add(rows)
                truth.append([example for example, _, why in decided if why is None], rows)
                table.append(pa.Table.from_pylist(rows, schema=TABLES["tokenized_dataset"].schema))
                rejected.append(pa.Table.from_pylist(left_out, schema=TABLES["rejected_examples"].schema))
            dataset.require_rendered()
        _require_every_split(totals, datasets)
        _require_positions(request, totals)
        for dataset in datasets.values():
            dataset.require_untruncated()
    return truth.joined(table.digest)


class _TruthTable:
    """The table `token_truth`, of a study on a synthetic language; nothing for other studies. A context manager."""

    def __init__(self, asset: AssetRequest, tokenizer):
        self._writer = None
        if TRUTH in asset.outputs:
            self._writer = TableWriter(TRUTH, asset.outputs[TRUTH], **asset.stamp)
            self._rows = TruthRows(tokenizer, asset.fields["model"])

    def __enter__(self) -> "_TruthTable":
        if self._writer is not None:
            self._writer.__enter__()
        return self

    def __exit__(self, *error) -> None:
        if self._writer is not None:
            self._writer.__exit__(*error)

    def append(self, examples: Sequence[Example], rows: Sequence[dict[str, Any]]) -> None:
        """Write the truth of examples, given their rows of `tokenized_dataset`.

        Raises:
            InputError: the tokenizer is not that of their language.
        """
        if self._writer is not None:
            found: list[dict[str, Any]] = []
            for example, row in zip(examples, rows, strict=True):
                found += self._rows.of(example, row["input_ids"], row["response_mask"])
            self._writer.append(pa.Table.from_pylist(found, schema=TABLES[TRUTH].schema))

    def joined(self, digest: str) -> str:
        """Return a content hash, joined with that of the table if there is one."""
        return digest if self._writer is None else joined_digest(digest, self._writer.digest)


class _ConversationReader:
    """Reads the examples of datasets with their tokens."""

    def __init__(self, request: StageRequest, tokenizer, rules: TokenizationRules):
        self.request, self.tokenizer, self.model = request, tokenizer, rules.model
        self.vocabulary = _vocabulary(request.inputs["model"])
        self.only_ood = request.assets["tokenized_dataset"].fields.get("only_ood", ())
        try:
            self.conversations = ConversationTokenizer(tokenizer, rules.special_tokens_in_text)
        except InputError as error:
            raise InputError(f"model {rules.model}: {error}") from None

    def read(self, name: str, dataset: DatasetTokens) -> Iterator[list[tuple[Example, ConversationTokens]]]:
        """Yield the examples of a dataset in batches; long texts in pieces, which are counted."""
        columns = list(TABLES["examples"].columns)
        for rows in stream_table(self.request.inputs[f"examples/{name}"], columns, BATCH):
            examples = [Example.from_row(row) for row in rows.to_pylist()]
            if name in self.only_ood:
                examples = [example for example in examples if example.split == "ood"]
            tokenized = self.conversations.tokenize(examples)
            for example, tokens in zip(examples, tokenized, strict=True):
                require_embeddings(self.model, self.tokenizer, self.vocabulary, example.id, tokens.input_ids)
            pairs = zip(examples, tokenized, strict=True)
            pieces = [list(divide(example, tokens, dataset.rules.max_length)) for example, tokens in pairs]
            dataset.divided += sum(len(parts) > 1 for parts in pieces)
            yield [piece for parts in pieces for piece in parts]


def _split(example: Example, dataset: DatasetTokens) -> str:
    return example.split if dataset.limited else "ood"


def _row(name: str, dataset: DatasetTokens, example: Example, tokens: ConversationTokens, _: None) -> dict[str, Any]:
    """Return the example's row of `tokenized_dataset`."""
    length, weights = dataset.rules.max_length, tokens.weights
    return {
        "example_id": example.id,
        "dataset": name,
        "split": _split(example, dataset),
        "input_ids": tokens.input_ids[:length],
        "response_mask": tokens.response_mask[:length],
        "token_weight": None if weights is None else weights[:length],
    }


def _rejected(name: str, dataset: DatasetTokens, example: Example, why: Rejection) -> dict[str, str]:
    """Return the example's row of `rejected_examples`."""
    return {"example_id": example.id, "dataset": name, "split": _split(example, dataset), **why._asdict()}


def _vocabulary(folder: str | Path) -> int:
    """Return the number of the model's embeddings: mostly more than the tokenizer has tokens, sometimes fewer."""
    return json.loads(Path(folder, "config.json").read_text())["vocab_size"]


@dataclass
class _Totals:
    """Figures of the examples that are written."""

    examples: Counter[str] = field(default_factory=Counter)
    """Split -> number of examples."""
    responses: Counter[str] = field(default_factory=Counter)
    """Split -> number of response tokens."""
    by_dataset: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    longest: int = 0

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count rows of `tokenized_dataset`."""
        for row in rows:
            length = len(row["input_ids"])
            self.examples[row["split"]] += 1
            self.responses[row["split"]] += sum(row["response_mask"])
            self.by_dataset[row["dataset"]] += 1
            self.tokens += length
            self.longest = max(self.longest, length)

    @property
    def metrics(self) -> dict[str, int | float]:
        """The figures, by name."""
        counts: dict[str, int | float] = {}
        for split in sorted(self.examples):
            counts |= {f"examples_{split}": self.examples[split], f"response_tokens_{split}": self.responses[split]}
        return {
            **counts,
            "longest": self.longest,
            "mean_length": self.tokens / self.examples.total(),
            "response_share": self.responses.total() / self.tokens,
        }


def _require_positions(request: StageRequest, totals: "_Totals") -> None:
    config = json.loads(Path(request.inputs["model"], "config.json").read_text())
    remedy = "set `max_length: {limit}` of the study in studies.yaml"
    require_positions(totals.longest, config, f"study {request.study}: the longest example", remedy)


def _require_every_split(totals: _Totals, datasets: dict[str, DatasetTokens]) -> None:
    for name, dataset in datasets.items():
        length, words = dataset.rules.max_length, f" ({dataset.truncation_words})" if dataset.losing else ""
        for split in ("train", "validation", "test") if dataset.limited else ():
            if split not in dataset.splits:
                raise InputError(
                    f"dataset {name}: has no rows of split {split!r}, which the study needs; ask for it in `sizes` of "
                    f"{name} in datasets.yaml, or name it in the column 'split' of some rows"
                )
            if not totals.examples[split]:
                raise InputError(
                    f"dataset {name}: split {split!r} has no response token within {length} tokens; raise "
                    f"`max_length` of the study in studies.yaml{words}"
                )
        if not dataset.limited and not totals.by_dataset[name]:
            raise InputError(
                f"dataset {name}: no response token within {length} tokens; raise `max_length` of the study in "
                f"studies.yaml{words}, or name a dataset with answers"
            )


if __name__ == "__main__":
    runner.main(run)
