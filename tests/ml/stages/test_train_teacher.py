"""The stage that trains the teacher stops at NaN, reports nothing, and keeps the checkpoint of the step before."""

import math

import polars as pl
import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import VOCAB, examples, tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.config import TrainSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import train_teacher
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table

STAMP = {"spec_hash": "s", "code_version": "1-x"}
OUTPUTS = ("adapter", "training_log", "plots")


def write_model(folder, damaged_token=None):
    """Save a tiny model whose output layer is not its embedding, of which one row may be NaN."""
    tiny_tokenizer(folder)
    model = tiny_model()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if damaged_token is not None:
        model.get_input_embeddings().weight.data[damaged_token] = math.nan
    model.save_pretrained(folder)


def run(folder, adapter="lora", **fields):
    """Run the stage in `folder` with empty outputs; return its reporter."""
    for output in OUTPUTS:
        (folder / "out" / output).mkdir(parents=True, exist_ok=True)
    train = TrainSpec(epochs=1, batch_size=2, save_steps=1, learning_rate=1e-3, adapter=adapter)
    asset = AssetRequest(
        fields={"train": train.model_dump(), "seed": 0, "precision": "float32", **fields},
        code_version="1-x",
        outputs={name: str(folder / "out" / name) for name in OUTPUTS},
    )
    inputs = {"model": str(folder / "model"), "tokenized_dataset": str(folder / "tokens")}
    reporter = RecordingReporter()
    assets = {"baseline_teacher": asset}
    work_dir = str(folder / "work")
    train_teacher.run(
        StageRequest(entrypoint="train_teacher", study="s", assets=assets, inputs=inputs, work_dir=work_dir), reporter
    )
    return reporter


def test_a_damaged_embedding_stops_at_the_step_that_reads_it(tmp_path):
    rows = examples(12)
    damaged = VOCAB - 1
    for row in rows:
        row.input_ids[:] = [token if token != damaged else 5 for token in row.input_ids]
    rows[3].input_ids[0] = damaged
    columns = ("example_id", "dataset", "split", "input_ids", "response_mask")
    frame = pl.DataFrame([{name: getattr(row, name) for name in columns} for row in rows])
    write_table(frame, "tokenized_dataset", tmp_path / "tokens", **STAMP)
    write_model(tmp_path / "model", damaged)
    with pytest.raises(InputError, match=r"step (\d): the loss is not finite .*toy/train0003.*embed_tokens") as caught:
        run(tmp_path)
    step = int(str(caught.value)[5])
    assert not any(list((tmp_path / "out" / output).iterdir()) for output in OUTPUTS)
    saved = [path.parent.name for path in (tmp_path / "work").glob("*/checkpoint-*/COMPLETE")]
    assert saved == ([f"checkpoint-{step - 1}"] if step > 1 else [])
    write_model(tmp_path / "model")
    (result,) = run(tmp_path).results
    assert result.metrics["steps"] == 6
    assert read_table(tmp_path / "out" / "training_log")["loss"].is_finite().all()


def test_a_teacher_that_nothing_could_be_dropped_of_is_refused_before_it_is_trained(tmp_path):
    write_model(tmp_path / "model")
    with pytest.raises(InputError, match="LlamaForCausalLM has none, so it would be 0 everywhere; set `attention_drop"):
        run(tmp_path, "none", drops_attention=False)
    assert not (tmp_path / "work").exists()
