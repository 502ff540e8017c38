"""Tasks of lm-eval as part of an evaluation, compared with lm-eval's own command-line path on the same files."""

import copy
import json
import math
from pathlib import Path

import polars as pl
import pytest

from tests.support.evaluator import Evaluator
from tests.support.lm_eval_rows import write_arc, write_pages
from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.config.lm_eval import LmEvalSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation import lm_eval_run
from tokenuq_ml.evaluation.lm_eval_groups import group_metrics
from tokenuq_ml.evaluation.lm_eval_index import resolve
from tokenuq_ml.stages.evaluate_model import forget_answers
from tokenuq_ml.tables.parquet import read_table

pytestmark = pytest.mark.slow

MMLU_PRO = ("biology", "business", "chemistry", "computer science", "economics", "engineering", "health")
MMLU_PRO += ("history", "law", "math", "other", "philosophy", "physics", "psychology")
"""Categories of MMLU-Pro."""


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return Evaluator(tmp_path_factory.mktemp("lm_eval"))


@pytest.fixture(autouse=True)
def fresh(evaluator):
    yield
    if hasattr(evaluator, "request"):
        forget_answers(evaluator.request)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return {"arc_easy": write_arc(folder, train=5, test=9), "wikitext": write_pages(folder)}


def settings(data, **changes) -> dict:
    return {"tasks": list(data), "limit": 7, "num_fewshot": 2, "batch_size": 3, "data": data, **changes}


def evaluate(evaluator, out: Path, lm_eval: dict, adapter: int | None = 1):
    return evaluator.evaluate(out, {"lm_eval": lm_eval}, adapter, **EvaluationSpec(lm_eval=lm_eval).lm_eval.paths)


def rows(out: Path) -> dict[tuple[str, str], dict]:
    table = read_table(out / "evaluations").filter(pl.col("dataset").str.starts_with("lm_eval/"))
    return {(row["dataset"], row["metric"]): row for row in table.iter_rows(named=True)}


def from_the_command_line(evaluator, data, adapter: int, **changes) -> dict:
    """What lm-eval gives for a model that it loads itself, with its adapter."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    local = [
        {"task": name, "dataset_path": "json", "dataset_name": None, "validation_split": None, "training_split": None}
        | ({"training_split": "train"} if "train" in files else {})
        | {"dataset_kwargs": {"data_files": files}}
        for name, files in data.items()
    ]
    folders = [folder for name in data for folder in resolve(name).folders]
    return lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={evaluator.folder}/model,peft={evaluator.folder}/adapter{adapter},dtype=float32",
        device="cpu",
        tasks=[{"group": "local", "task": local}],
        task_manager=TaskManager(include_path=folders, include_defaults=False),
        bootstrap_iters=0,
        **{"limit": 7, "num_fewshot": 2, "batch_size": 3, **changes},
    )


def test_means_and_samples_are_those_of_lm_evals_own_run(evaluator, data, tmp_path):
    _, figures = evaluate(evaluator, tmp_path, settings(data))
    theirs = from_the_command_line(evaluator, data, 1)
    found = rows(tmp_path)
    for metric in ("acc", "acc_norm"):
        row = found["lm_eval/arc_easy", metric]
        assert row["value"] == pytest.approx(theirs["results"]["arc_easy"][f"{metric},none"], rel=1e-12)
        assert row["n"] == 7 and row["higher_is_better"] and row["split"] == "ood"
        assert row["ci_low"] < row["value"] < row["ci_high"]
    pages = theirs["results"]["wikitext"]
    for name in ("word_perplexity", "byte_perplexity"):
        row = found["lm_eval/wikitext", f"log_{name}"]
        assert math.exp(row["value"]) == pytest.approx(pages[f"{name},none"], rel=1e-9)
        assert row["higher_is_better"] is False and row["n"] == 3
    assert found["lm_eval/wikitext", "bits_per_byte"]["value"] == pytest.approx(pages["bits_per_byte,none"], rel=1e-9)
    assert found["lm_eval/wikitext", "bits_per_byte"]["higher_is_better"] is False
    samples = read_table(tmp_path / "lm_eval_samples").filter(task="arc_easy").sort("example_id")
    for own, sample in zip(samples.iter_rows(named=True), theirs["samples"]["arc_easy"], strict=True):
        assert own["prompt"] == sample["arguments"][0][0] and own["prompt"].count("Question:") == 3
        assert pytest.approx([pair[0] for pair in sample["filtered_resps"]], rel=1e-6) == [
            pair[0] for pair in json.loads(own["response"])
        ]
    assert "arc_easy 1.0 (2-shot, 7 of 9 samples)" in figures["lm_eval"]
    assert figures["lm_eval/arc_easy_acc"] == found["lm_eval/arc_easy", "acc"]["value"]
    examples = read_table(tmp_path / "evaluation_examples").filter(dataset="lm_eval/arc_easy", metric="acc")
    assert examples["example_id"].to_list() == samples["example_id"].to_list()


def test_the_base_model_is_asked_the_same_and_the_tokenizer_is_left_as_it_was(evaluator, data, tmp_path):
    arc, tokenizer = {"arc_easy": data["arc_easy"]}, evaluator.tokenizer
    before = tokenizer.padding_side, tokenizer.pad_token
    evaluate(evaluator, tmp_path / "one", settings(arc))
    evaluate(evaluator, tmp_path / "two", settings(arc), None)
    assert (tokenizer.padding_side, tokenizer.pad_token) == before
    one, two = (read_table(tmp_path / name / "lm_eval_samples") for name in ("one", "two"))
    assert one["prompt"].equals(two["prompt"]) and not one["response"].equals(two["response"])


def test_a_run_after_a_kill_resumes_at_the_request_and_the_task(evaluator, data, tmp_path, monkeypatch):
    digest, _ = evaluate(evaluator, tmp_path / "whole", settings(data))
    forget_answers(evaluator.request)
    answered, real = [], lm_eval_run.TaskRunner.measure

    def killed(self, name, task):
        if name == "wikitext":
            raise KeyboardInterrupt
        return real(self, name, task)

    monkeypatch.setattr(lm_eval_run.TaskRunner, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluator, tmp_path / "halted", settings(data))
    assert not (tmp_path / "halted/evaluations").exists()
    monkeypatch.setattr(
        lm_eval_run.TaskRunner, "measure", lambda self, name, task: answered.append(name) or real(self, name, task)
    )
    assert evaluate(evaluator, tmp_path / "resumed", settings(data))[0] == digest
    assert answered == ["wikitext"]


def test_requests_that_were_answered_before_a_kill_are_not_asked_again(evaluator, data, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    arc, calls, real = {"arc_easy": data["arc_easy"]}, [], HFLM._model_call

    def counted(self, inputs, *rest, **more):
        calls.append(len(inputs))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, inputs, *rest, **more)

    monkeypatch.setattr(HFLM, "_model_call", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluator, tmp_path / "halted", settings(arc))
    before = sum(calls[:3])
    evaluate(evaluator, tmp_path / "resumed", settings(arc))
    # Seven questions have 25 choices, of which every third question lacks one.
    assert sum(calls[4:]) == 25 - before


def test_in_a_chat_prompts_are_turns_of_the_models_template(evaluator, data, tmp_path):
    arc = {"arc_easy": data["arc_easy"]}
    evaluate(evaluator, tmp_path, settings(arc, chat=True, limit=2, num_fewshot=1))
    theirs = from_the_command_line(evaluator, arc, 1, apply_chat_template=True, limit=2, num_fewshot=1)
    samples = read_table(tmp_path / "lm_eval_samples").sort("example_id")
    assert samples["prompt"].to_list() == [one["arguments"][0][0] for one in theirs["samples"]["arc_easy"]]
    row = rows(tmp_path)["lm_eval/arc_easy", "acc"]
    assert row["value"] == theirs["results"]["arc_easy"]["acc,none"]


def test_local_data_that_is_missing_changed_or_of_other_columns_is_named(evaluator, tmp_path):
    data = {"arc_easy": write_arc(tmp_path, test=3)}
    spec = settings(data, num_fewshot=0)
    inputs = EvaluationSpec(lm_eval=spec).lm_eval.paths
    for content, message in (
        (None, r"data.arc_easy.test: .*arc_test.jsonl: no such file"),
        ('{"question": "another"}\n', "has changed since the configuration was read"),
    ):
        fields = EvaluationSpec(lm_eval=spec).fields()
        Path(data["arc_easy"]["test"]).unlink(missing_ok=True)
        if content:
            Path(data["arc_easy"]["test"]).write_text(content)
        with pytest.raises(InputError, match=message):
            evaluator.evaluate(tmp_path / "out", {**fields}, **inputs)
    with pytest.raises(InputError, match=r"data.arc_easy: lm-eval cannot read it .*columns of the dataset"):
        evaluate(evaluator, tmp_path / "out", spec)


def test_a_task_without_local_data_and_without_a_hub_says_what_to_do(evaluator, tmp_path):
    with pytest.raises(InputError, match=r"dataset allenai/ai2_arc of arc_easy cannot be loaded .*data.arc_easy"):
        evaluate(evaluator, tmp_path, {"tasks": ["arc_easy"]})


@pytest.mark.parametrize("weighted", [True, False])
def test_a_group_has_lm_evals_value(evaluator, tmp_path, weighted):
    """Two tasks of different sizes in one group, which lm-eval aggregates itself."""
    from lm_eval.api.group import Group
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    metrics = [{"metric": name, "weight_by_size": weighted} for name in ("acc", "acc_norm")]
    group = Group.from_config({"group": "both", "aggregate_metric_list": metrics})
    spec = LmEvalSpec(tasks=("arc_easy", "arc_challenge"), num_fewshot=0, batch_size=4)
    runner = lm_eval_run.TaskRunner(
        evaluator.adapters[1], evaluator.tokenizer, spec, tmp_path / "requests", lambda total: lambda done: None
    )
    results, tasks = {}, {}
    for name, count in (("arc_easy", 9), ("arc_challenge", 4)):
        (tmp_path / name).mkdir()
        data = write_arc(tmp_path / name, test=count)
        tasks |= lm_eval_run.load(resolve(name), data, spec, tmp_path / "cache").tasks
        group.add(tasks[name])
        results[name] = runner.measure(name, tasks[name])
    found, left_out = group_metrics({"both": group}, results)
    own = HFLM(evaluator.adapters[1].get_base_model(), tokenizer=copy.deepcopy(evaluator.tokenizer), batch_size=4)
    theirs = evaluate(own, {"tasks": tasks, "groups": {"both": group}}, bootstrap_iters=0)["groups"]["both"]
    assert not left_out and {one.name for one in found["both"]} == {"acc", "acc_norm"}
    for one in found["both"]:
        assert one.value == pytest.approx(theirs[f"{one.name},none"], rel=1e-12) and len(one.example_ids) == 13


def test_local_data_of_a_group_reach_all_of_its_tasks(tmp_path):
    """Fourteen tasks, each of which takes its category of one file, as lm-eval's own functions do."""
    rows = [
        {"question": f"{category}?", "options": ["a", "b"], "answer": "A", "answer_index": 0, "category": category}
        | {"cot_content": "A: so", "src": "made up", "question_id": number}
        for number, category in enumerate(("biology", "biology", "law", *MMLU_PRO))
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    spec = LmEvalSpec(tasks=("mmlu_pro",), num_fewshot=1)
    found = lm_eval_run.load(
        resolve("mmlu_pro"), {"test": str(path), "validation": str(path)}, spec, tmp_path / "cache"
    )
    assert {len(task.eval_docs) for task in found.tasks.values()} == {1, 2, 3} and len(found.tasks) == 14
    assert len(found.tasks["mmlu_pro_biology"].eval_docs) == 3 and list(found.groups) == ["mmlu_pro"]
    assert {task.get_config("num_fewshot") for task in found.tasks.values()} == {1}


@pytest.mark.heavy
def test_a_task_that_generates_has_lm_evals_answers(evaluator, tmp_path):
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    path = tmp_path / "rows.jsonl"
    sums = [{"question": f"What are {n} and {n}?", "answer": f"{n}+{n}\n#### {2 * n}"} for n in range(4)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in sums))
    spec = LmEvalSpec(tasks=("gsm8k",), num_fewshot=1, limit=3, batch_size=2)
    data = {"train": str(path), "test": str(path)}
    runner = lm_eval_run.TaskRunner(
        evaluator.adapters[1], evaluator.tokenizer, spec, tmp_path / "requests", lambda total: lambda done: None
    )
    task = lm_eval_run.load(resolve("gsm8k"), data, spec, tmp_path / "cache").tasks["gsm8k"]
    found = runner.measure("gsm8k", task)
    own = HFLM(evaluator.adapters[1].get_base_model(), tokenizer=copy.deepcopy(evaluator.tokenizer), batch_size=2)
    again = lm_eval_run.load(resolve("gsm8k"), data, spec, tmp_path / "cache")
    theirs = evaluate(own, {"tasks": dict(again.tasks), "groups": {}}, limit=3, bootstrap_iters=0)
    assert {one["name"] for one in found["metrics"]} == {"exact_match,strict-match", "exact_match,flexible-extract"}
    for ours, sample in zip(found["samples"], theirs["samples"]["gsm8k"], strict=True):
        assert ours["response"] == sample["resps"][0][0] and ours["filtered"] == sample["filtered_resps"][0]
        assert ours["filter"] == sample["filter"] and ours["prompt"] == sample["arguments"][0][0]
