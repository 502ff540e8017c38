"""`evaluation.lm_eval` of a study: its checks, and local data whose content and not place is part of the version."""

import os

import pytest
import yaml
from pydantic import ValidationError

from tests.support.paths import ROOT
from tokenuq_ml.config import EvaluationSpec, StudySpec
from tokenuq_ml.config.lm_eval import NO_DATA, LmEvalSpec, data_digest
from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError

STUDY = {"model": "smollm2_135m", "dataset": "gsm_symbolic", "ablations": ["mle", "paper_top25"]}


def load(folder, evaluation: dict):
    (folder / "studies.yaml").write_text(yaml.safe_dump({"mine": {**STUDY, "evaluation": evaluation}}))
    return load_config(ROOT / "config", folder).studies["mine"].evaluation


def arc(**data: str) -> dict:
    return {"lm_eval": {"tasks": ["arc_easy"], "data": {"arc_easy": data}}}


def test_paths_start_at_the_file_and_the_version_follows_the_content(tmp_path):
    versions = []
    for folder, content in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / folder / "rows").mkdir(parents=True)
        (tmp_path / folder / "rows/test.jsonl").write_text(content)
        found = load(tmp_path / folder, arc(test="rows/test.jsonl"))
        path = os.path.realpath(tmp_path / folder / "rows/test.jsonl")
        assert found.lm_eval.paths == {"lm_eval/arc_easy/test": path}
        assert str(tmp_path) not in str(found.fields())
        # A stage makes the spec of the fields again.
        assert EvaluationSpec(**found.fields()).fields() == found.fields()
        versions.append(found.fields())
    assert versions[0] == versions[1] != versions[2]


def test_a_folder_has_the_digest_of_its_files_links_included(tmp_path):
    for name in ("blobs", "copy/data", "links/data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "copy/data/test.parquet").write_bytes(b"rows")
    (tmp_path / "blobs/0").write_bytes(b"rows")
    (tmp_path / "links/data/test.parquet").symlink_to(tmp_path / "blobs/0")
    digest = data_digest(str(tmp_path / "copy"))
    assert digest == data_digest(str(tmp_path / "links")) != NO_DATA
    (tmp_path / "blobs/0").write_bytes(b"other")
    assert data_digest(str(tmp_path / "links")) != digest
    assert data_digest(str(tmp_path / "nowhere")) == data_digest(str(tmp_path / "blobs/1")) == NO_DATA


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tasks": []}, "at least 1 item"),
        ({"tasks": ["arc_easy", "arc_easy"]}, "names 'arc_easy' twice"),
        (
            {"data": {"hellaswag": {"test": "a"}}},
            "'data' names 'hellaswag', which is not in 'tasks'; allowed: arc_easy",
        ),
        ({"data": {"arc_easy": {}}}, "'data.arc_easy' is empty"),
        ({"limit": 0}, "greater than 0"),
        ({"num_fewshot": -1}, "greater than or equal to 0"),
        ({"few_shots": 1}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        LmEvalSpec(**{"tasks": ["arc_easy"], **changes})


def test_a_sharded_model_is_refused():
    with pytest.raises(
        ValidationError, match="'evaluation.lm_eval' runs each task in one process, and 'sharding' fsdp"
    ):
        StudySpec(name="mine", **STUDY, processes=2, sharding="fsdp", evaluation={"lm_eval": {"tasks": ["arc_easy"]}})


def test_a_comparison_with_an_unknown_model_names_the_file_and_the_models(tmp_path):
    judge = {"base_url": "http://localhost:8000/v1", "model": "judge"}
    pairwise = {"dataset": "alpaca_eval_gpt4", "versus": "male", "judge": judge}
    with pytest.raises(InputError, match=r"studies.yaml: mine.evaluation.pairwise.versus: 'male' is no model .*mle"):
        load(tmp_path, {"pairwise": pairwise})
    with pytest.raises(InputError, match="mine.evaluation.pairwise.dataset: 'nothing' is not in datasets.yaml"):
        load(tmp_path, {"pairwise": {**pairwise, "versus": "mle", "dataset": "nothing"}})
    with pytest.raises(InputError, match="mine.evaluation.pairwise.judge.local_model: 'nobody' is not in models.yaml"):
        load(tmp_path, {"pairwise": {**pairwise, "versus": "mle", "judge": {"local_model": "nobody"}}})
