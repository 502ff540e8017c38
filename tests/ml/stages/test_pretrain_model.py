"""A model is trained from scratch on a language; an interrupted training resumes with the same result."""

import os
import signal
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from tests.support.reporter import RecordingReporter
from tests.support.tiny_language import (
    LANGUAGE,
    MODEL,
    POST,
    language_spec,
    model_spec,
    post_spec,
    write_documents,
)
from tokenuq_ml.data.language.documents import language_of
from tokenuq_ml.data.tokenizer_files import load_tokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import pretrain_model, tokenize_dataset
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table
from tokenuq_ml.training import pretraining


class InterruptedReporter(RecordingReporter):
    """Sends SIGINT to this process as soon as a training has begun to report its steps."""

    def count_tokens(self, tokens):
        if not self.tokens:
            os.kill(os.getpid(), signal.SIGINT)
        super().count_tokens(tokens)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"), language_spec(), post_spec())


def train(folder: Path, documents, reporter=None, spec=None):
    reporter = reporter or RecordingReporter()
    outputs = {"weights": str(folder / "weights")}
    fields = (spec or model_spec()).fields()
    request = StageRequest(
        entrypoint="pretrain_model",
        assets={"models": AssetRequest(fields=fields, code_version="1-x", outputs=outputs)},
        inputs=dict(documents),
        work_dir=str(folder / "work"),
    )
    pretrain_model.run(request, reporter)
    return reporter


def test_a_model_is_trained_and_stored_with_its_tokenizer(tmp_path, documents):
    reporter = train(tmp_path, documents, spec=model_spec(steps=40, learning_rate=0.02))
    (result,) = reporter.results
    language = language_of(language_spec())
    assert result.metrics["steps"] == 40 and result.metrics["vocabulary"] == len(language.words.vocabulary)
    assert result.metrics["final_loss"] < result.metrics["first_loss"] - 0.5
    assert result.metrics["response_tokens_trained"] == reporter.tokens > 0
    tokenizer = load_tokenizer(tmp_path / "weights")
    assert tokenizer.get_vocab() == {word: number for number, word in enumerate(language.words.vocabulary)}
    assert result.metrics["end_of_turn"] == "<end>"
    assert not list((tmp_path / "work").iterdir())


def test_an_interrupted_training_resumes_with_the_same_weights(tmp_path, documents, monkeypatch):
    monkeypatch.setattr(pretraining, "SAVE_STEPS", 3)
    train(tmp_path / "whole", documents)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 2 of 6"):
        train(tmp_path / "stopped", documents, InterruptedReporter())
    (result,) = train(tmp_path / "stopped", documents).results
    assert result.metrics["resumed_from_step"] == 2 and result.metrics["steps"] == 6
    whole, resumed = (load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys() and all((whole[name] == resumed[name]).all() for name in whole)


def test_a_config_that_makes_no_model_is_refused_in_a_sentence(tmp_path, documents):
    spec = model_spec()
    odd = spec.model_copy(update={"config": {**spec.config, "num_attention_heads": 3}})
    unknown = spec.model_copy(update={"config": {"model_type": "no_such_model"}})
    for one in (odd, unknown):
        with pytest.raises(InputError, match=f"model {MODEL}: transformers cannot make a model of `config:`"):
            train(tmp_path, documents, spec=one)


def test_the_truth_is_written_with_the_tokens(tmp_path, documents):
    train(tmp_path, documents, spec=model_spec(steps=1))
    outputs = {name: str(tmp_path / name) for name in ("tokenized_dataset", "rejected_examples", "token_truth")}
    fields = {"model": MODEL, "dataset": POST, "ood": [LANGUAGE], "only_ood": [LANGUAGE], "max_length": 64}
    request = StageRequest(
        entrypoint="tokenize_dataset",
        study="s",
        assets={"tokenized_dataset": AssetRequest(fields=fields, code_version="1-x", outputs=outputs)},
        inputs={"model": str(tmp_path / "weights"), **documents},
        work_dir=str(tmp_path / "work"),
    )
    reporter = RecordingReporter()
    tokenize_dataset.run(request, reporter)
    tokens, truth = (read_table(outputs[name]) for name in ("tokenized_dataset", "token_truth"))
    # The documents for pre-training are not scored.
    splits = dict(tokens["split"].cast(pl.String).value_counts().iter_rows())
    assert splits == {"train": 12, "validation": 4, "test": 4, "ood": 6}
    assert len(truth) == tokens["response_mask"].list.sum().sum()
    ids = {row["example_id"]: row["input_ids"] for row in tokens.iter_rows(named=True)}
    for row in truth.iter_rows(named=True):
        assert ids[row["example_id"]][row["position"]] in row["support"]
    without = {**outputs}
    del without["token_truth"]
    plain = request.model_copy(
        update={"assets": {"tokenized_dataset": AssetRequest(fields=fields, code_version="1-x", outputs=without)}}
    )
    tokenize_dataset.run(plain, reporter)
    assert reporter.results[0].data_version != reporter.results[1].data_version
