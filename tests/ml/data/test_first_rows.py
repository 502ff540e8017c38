"""What `tokenuq plan` says about rows before they are loaded."""

from tests.support.tiny_datasets import GOOD, chat, messages_spec, write_lines
from tokenuq_ml.costs.sources import dataset_source
from tokenuq_ml.data.first_rows import why_unusable


def test_a_dataset_in_another_format_is_named_before_a_run(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"instruction": "a", "output": "b"}] * 300)
    reason = why_unusable(messages_spec(path))
    assert reason == (
        f"none of the first 100 rows can be used: {path}: line 1: 'messages' must be a list of turns, not empty; the "
        "row has the columns of format 'alpaca': instruction, output"
    )
    source = dataset_source(messages_spec(path), complete=False)
    assert (source.ready, source.words) == (False, reason)


def test_one_usable_row_is_enough(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ["{not json"] * 50 + [GOOD])
    assert why_unusable(messages_spec(path)) is None
    labelled = write_lines(tmp_path / "b.jsonl", [chat("a", label=False)] * 3)
    assert why_unusable(messages_spec(labelled)) is None
    assert why_unusable(messages_spec(write_lines(tmp_path / "c.jsonl", ["{"] * 3), max_broken_share=1)) is None
