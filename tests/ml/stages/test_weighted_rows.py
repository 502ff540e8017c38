"""From a weighted turn in a file, through both data stages, to the weight of a token in a training batch."""

import json

from tests.support.reporter import RecordingReporter
from tests.support.tiny_datasets import write_lines
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.batching import collate
from tokenuq_ml.data.stored_examples import read_examples
from tokenuq_ml.stages import load_dataset, tokenize_dataset
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table


def run_stage(module, stage: str, fields: dict, folder, inputs: dict, outputs: tuple[str, ...]) -> RecordingReporter:
    for output in outputs:
        (folder / output).mkdir(parents=True)
    asset = AssetRequest(fields=fields, code_version="1-x", outputs={name: str(folder / name) for name in outputs})
    request = StageRequest(
        entrypoint=stage, study="toy", assets={stage: asset}, work_dir=str(folder / "work"), inputs=inputs
    )
    recorder = RecordingReporter()
    module.run(request, recorder)
    return recorder


def chat(question: str, split: str, first: dict, second: dict, **more) -> dict:
    turns = [
        *({"role": "user", "content": question}, {"role": "assistant", "content": "5 apples", **first}),
        *({"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "12 apples", **second}),
    ]
    return {"messages": turns, "split": split, **more}


def test_weights_of_turns_reach_the_tokens_of_a_batch(tmp_path):
    rows = [
        chat("How many apples?", "train", {"train": False}, {"weight": 0.5}),
        chat("How many days?", "train", {}, {}),
        chat("How many dollars?", "train", {"weight": 2.0}, {}, images=["a.png"]),
        chat("Which price?", "validation", {"weight": 0}, {"weight": 1}),
        chat("Who sells?", "test", {}, {}),
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    spec = DatasetSpec(name="main", format="messages", path=path, sizes={"train": 3, "validation": 1, "test": 1})
    loaded = run_stage(load_dataset, "datasets", spec.fields(), tmp_path / "data", {}, ("examples", "rejected_rows"))
    assert read_table(tmp_path / "data/examples")["turn_weights"].to_list() == [
        *([0, 0, 0, 0.5], None, [0, 2, 0, 1], [0, 0, 0, 1], None)
    ]
    assert loaded.results[0].metrics["columns_not_read"] == "images (1)"
    assert any("images (1)" in message for message in loaded.lines)

    tokenizer = tiny_tokenizer(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps({"vocab_size": 400}))
    fields = {"model": "tiny", "dataset": "main", "ood": [], "max_length": 256}
    inputs = {"model": str(tmp_path / "model"), "examples/main": str(tmp_path / "data/examples")}
    outputs = ("tokenized_dataset", "rejected_examples")
    run_stage(tokenize_dataset, "tokenized_dataset", fields, tmp_path / "tokens", inputs, outputs)
    examples = read_examples(tmp_path / "tokens/tokenized_dataset", ["train"])
    five, twelve = (len(tokenizer(text + "<|im_end|>")["input_ids"]) for text in ("5 apples", "12 apples"))
    batch = collate(examples)
    assert batch.weight_N.tolist() == [0.5] * twelve + [1.0] * (five + twelve) + [2.0] * five + [1.0] * twelve
    assert tokenizer.decode(batch.label_N[:twelve]) == "12 apples<|im_end|>"
    # A weight of 0 leaves no response token, and 1 is no weight.
    (validation,) = read_examples(tmp_path / "tokens/tokenized_dataset", ["validation"])
    assert validation.weights is None and len(validation.positions) == twelve
