"""Names of lm-eval's tasks, local data in their place, and metrics of samples, compared with lm-eval itself."""

import math
import random
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.lm_eval_data import overrides
from tokenuq_ml.evaluation.lm_eval_index import resolve, resolve_all
from tokenuq_ml.evaluation.lm_eval_metrics import sample_parts

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """A cache folder for this file's tests: the user's may hold an index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "lm_eval_cache"))


@pytest.mark.parametrize("folder", ["arc", "leaderboard", "scrolls"])
def test_names_stand_for_the_tasks_that_lm_eval_loads(folder):
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    root = lm_eval.__path__[0] + f"/tasks/{folder}"
    theirs = TaskManager(include_path=root, include_defaults=False).task_index
    assert theirs
    for name, entry in theirs.items():
        if entry.kind is Kind.TAG or (entry.cfg or {}).get("unsafe_code"):
            continue
        found = resolve(name)
        assert found.kind == ("group" if entry.kind is Kind.GROUP else "task")
        assert any(file == entry.yaml_path for file in found.files)
        if found.kind == "task":
            (task,) = found.tasks
            given = {key: value for key, value in entry.cfg.items() if not isinstance(value, (dict, list))}
            assert task.name == name and all(
                task.config[key] == value or "/" in str(value) for key, value in given.items() if key != "class"
            )


def test_groups_and_tags_expand_to_their_tasks():
    assert [task.name for task in resolve("ai2_arc").tasks] == ["arc_challenge", "arc_easy"]
    assert resolve("ai2_arc").kind == "tag" and len(resolve("mmlu_pro").tasks) == 14
    assert {task.name.split("_")[0] for task in resolve("leaderboard").tasks} == {"leaderboard"}
    assert resolve("hellaswag").tasks[0].evaluated_split == "validation"
    with pytest.raises(InputError, match="'arc_easy' is part of 'ai2_arc' and of 'arc_easy'; remove one"):
        resolve_all(["ai2_arc", "arc_easy"])


@pytest.mark.parametrize(
    "name, message",
    [
        ("arc_eazy", "no task, group or tag 'arc_eazy'; did you mean arc_easy"),
        ("humaneval", "runs code that the model has written"),
        ("pisa_en", "asks about images"),
    ],
)
def test_tasks_that_cannot_be_measured_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        resolve(name)


def test_the_index_needs_neither_lm_eval_nor_torch():
    program = (
        "import sys; from tokenuq_ml.evaluation.lm_eval_index import resolve; resolve('arc_easy');"
        "sys.exit(bool({'lm_eval', 'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def data_of(tmp_path, *splits: str, ending: str = ".jsonl") -> dict[str, str]:
    for split in splits:
        (tmp_path / f"{split}{ending}").write_text("{}\n")
    return {split: str(tmp_path / f"{split}{ending}") for split in splits}


def test_local_data_replace_the_datasets_address(tmp_path):
    found, data = resolve("arc_easy"), data_of(tmp_path, "train", "test")
    keys = overrides(found, data, 5)
    assert keys["dataset_path"] == "json" and keys["dataset_name"] is None and keys["validation_split"] is None
    assert keys["dataset_kwargs"] == {"data_files": {split: [path] for split, path in data.items()}}
    assert overrides(found, str(tmp_path), 5) == {"dataset_path": str(tmp_path), "dataset_kwargs": {}}
    assert overrides(found, data_of(tmp_path, "test"), 0)["training_split"] is None


@pytest.mark.parametrize(
    "task, splits, shots, message",
    [
        ("arc_easy", ["train"], 0, "lacks the split 'test' of arc_easy, which is measured"),
        ("arc_easy", ["test"], 3, "lacks the split 'train' of arc_easy, from which 3 examples are drawn"),
        ("arc_easy", ["test", "dev"], 0, "arc_easy has no split 'dev'; allowed: test, train, validation"),
        ("mmlu", ["test"], 0, "its tasks read 57 parts of a dataset"),
        ("squadv2", ["validation"], 0, "reads its data by its own code"),
    ],
)
def test_local_data_that_do_not_fit_are_refused(tmp_path, task, splits, shots, message):
    with pytest.raises(InputError, match=message):
        overrides(resolve(task), data_of(tmp_path, *splits), shots)


def test_files_of_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"test.txt: unknown kind of file; allowed: .json, .jsonl"):
        overrides(resolve("arc_easy"), data_of(tmp_path, "test", ending=".txt"), 0)
    with pytest.raises(InputError, match="no folder"):
        overrides(resolve("arc_easy"), str(tmp_path / "nowhere"), 0)


def values_of(*values) -> dict[str, object]:
    return {f"task/{number:06d}": value for number, value in enumerate(values)}


def test_means_and_perplexities_have_lm_evals_values():
    from lm_eval.api import metrics as theirs

    draw = random.Random(0)
    rates = [draw.random() for _ in range(9)]
    pairs = [(-draw.uniform(5, 90), draw.randint(1, 40)) for _ in range(9)]
    values = {
        ("acc", "none"): values_of(*rates),
        ("exact_match", "strict-match"): values_of(*rates),
        ("some", "none"): values_of(*rates[:8], math.nan),
        ("perplexity", "none"): values_of(*(pair[0] / 10 for pair in pairs)),
        ("word_perplexity", "none"): values_of(*pairs),
        ("bits_per_byte", "none"): values_of(*pairs),
        ("inst", "none"): values_of([True, False], [True], [False, True, True]),
    }
    aggregation = {
        "acc": theirs.mean,
        "exact_match": theirs.mean,
        "some": theirs.nanmean,
        "perplexity": theirs.perplexity,
        "word_perplexity": theirs.weighted_perplexity,
        "bits_per_byte": theirs.bits_per_byte,
        "inst": lambda items: sum(sum(items, [])) / len(sum(items, [])),
    }
    found, left_out = sample_parts(values, aggregation, {"acc": True, "bits_per_byte": False})
    by_name = {metric.name: metric for metric in found}
    assert not left_out
    assert set(by_name) == {
        "acc", "exact_match,strict-match", "some", "log_perplexity", "log_word_perplexity", "bits_per_byte", "inst"
    }  # fmt: skip
    assert by_name["acc"].value == pytest.approx(theirs.mean(rates))
    assert by_name["some"].value == pytest.approx(theirs.mean(rates[:8])) and len(by_name["some"].example_ids) == 8
    assert math.exp(by_name["log_perplexity"].value) == pytest.approx(
        theirs.perplexity([pair[0] / 10 for pair in pairs])
    )
    assert math.exp(by_name["log_word_perplexity"].value) == pytest.approx(theirs.weighted_perplexity(pairs))
    assert by_name["bits_per_byte"].value == pytest.approx(theirs.bits_per_byte(pairs))
    assert by_name["inst"].value == pytest.approx(4 / 6)
    assert by_name["log_word_perplexity"].higher_is_better is False and by_name["acc"].higher_is_better


def test_metrics_that_are_no_means_are_left_out_by_name():
    from lm_eval.api import metrics as theirs

    # All labels and predictions agree: F1 and the mean are both 1, and it is left out all the same.
    labels = values_of((1, 1), (1, 1), (1, 1))
    values = {("f1", "none"): labels, ("mcc", "none"): labels, ("bleu", "none"): values_of(("a", "a"), ("b", "b"))}
    values |= {("middle", "none"): values_of(0.5, 0.5), ("broken", "none"): values_of(0.5, math.inf)}
    aggregation = {"f1": theirs.f1_score, "mcc": theirs.matthews_corrcoef, "bleu": theirs.bleu}
    aggregation |= {"middle": theirs.median, "broken": theirs.mean}
    found, left_out = sample_parts(values, aggregation, {})
    assert not found and set(left_out) == {"f1", "mcc", "bleu", "middle", "broken"}
    assert left_out["f1"] == "f1_score is no mean over samples"
    assert left_out["broken"] == "a sample has no finite value"
