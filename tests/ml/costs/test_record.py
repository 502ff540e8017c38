"""The record of a training's costs: its mean step, its file, and the errors of reading it."""

import pytest

from tokenuq_ml.costs.flops import Step
from tokenuq_ml.costs.record import CostRecord
from tokenuq_ml.errors import InputError


def record(**changes) -> CostRecord:
    seconds = {"forward": 10, "head": 8, "backward": 14, "teacher": 1, "selection": 0, "other": 2, "total": 35}
    return CostRecord(
        **{
            "steps": 10,
            "sequences": 80,
            "tokens": 15_000,
            "padded_tokens": 16_000,
            "response_tokens": 8000,
            "mle_tokens": 2000,
            "distilled_tokens": 6000,
            "selection": "dynamic",
            "selection_needs_loss": True,
            "teacher": "mean_embeddings",
            "lora_rank": 32,
            "attended": 1_600_000,
            "seconds": seconds,
            **changes,
        }
    )


class TestCostRecord:
    def test_a_record_gives_its_mean_step(self):
        assert record().step() == Step(1600, 800, 160_000, 0.25, 0.75, True, 0, "mean_embeddings", 32, True)

    def test_a_record_without_response_tokens_has_shares_of_zero(self):
        assert record(response_tokens=0, mle_tokens=0, distilled_tokens=0).step().mle_share == 0

    def test_a_record_is_read_back_from_its_file(self, tmp_path):
        record().write(tmp_path / "costs" / "costs.json")
        assert CostRecord.read(tmp_path / "costs" / "costs.json") == record()
        assert [path.name for path in (tmp_path / "costs").iterdir()] == ["costs.json"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "no such file"),
            ("{", "Invalid JSON"),
            (record().model_dump_json().replace('"total":35.0', '"total":-1'), "seconds.total"),
            (record().model_dump_json().replace('"steps":10', '"steps":0'), "steps"),
            (record().model_dump_json().replace("{", '{"more": 1,', 1), "more"),
        ],
    )
    def test_record_errors_name_file_field_and_fix(self, text, message, tmp_path):
        path = tmp_path / "costs.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(InputError, match=f"(?s)costs.json: .*{message}.*train the student again"):
            CostRecord.read(path)
