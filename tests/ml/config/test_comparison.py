"""Entries of comparisons.yaml: what they stand for, what decides their version, and the sentence for each mistake."""

import pytest
import yaml

from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.versions import comparison_fields

STUDY = {"model": "tiny", "dataset": "toy", "ood": ["far"], "ablations": ["mle", "paper_top", "random_top25"]}
CONFIG = {
    "models": {"tiny": {"source": "path", "path": "."}},
    "datasets": {
        "toy": {"format": "messages", "path": "/nowhere", "sizes": {"train": 3, "validation": 2, "test": 2}},
        "far": {"format": "messages", "path": "/nowhere", "sizes": {"ood": 2}},
    },
    "studies": {"one": STUDY, "two": {**STUDY, "ablations": ["random_top25", "paper_top25"]}},
    "ablations": {
        "mle": {"select": "all"},
        "paper_top": {"select": {"by": "loss", "quantile": [0.25, 0.5]}, "rest": "distill"},
        "random_top25": {"select": {"by": "random", "quantile": 0.25}},
    },
}
FRONT = {"kind": "front", "studies": ["one"]}


def load(folder, comparisons, **files):
    for kind, entries in {**CONFIG, "comparisons": comparisons, **files}.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(entries))
    return load_config(folder)


def test_the_file_is_optional_and_folders_add_entries(tmp_path):
    (tmp_path / "more").mkdir()
    load(tmp_path, {})
    (tmp_path / "comparisons.yaml").unlink()
    assert load_config(tmp_path).comparisons == {}
    (tmp_path / "more" / "comparisons.yaml").write_text(yaml.safe_dump({"page": FRONT}))
    assert load_config(tmp_path, tmp_path / "more").comparisons["page"].studies == ("one",)
    (tmp_path / "comparisons.yaml").write_text(yaml.safe_dump({"page": FRONT}))
    with pytest.raises(InputError, match=r"more/comparisons.yaml: page: already defined in .*rename one of them"):
        load_config(tmp_path, tmp_path / "more")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ([], "page: must be a mapping, is list"),
        ({"studies": ["one"]}, "page.kind: missing; allowed: front, "),
        ({**FRONT, "kind": "back"}, "page.kind: unknown kind 'back'; allowed: front, "),
        ({**FRONT, "studies": []}, "page: 'studies' is empty: name at least one"),
        ({**FRONT, "studies": ["one", "one"]}, "page: 'studies' names a study twice; remove one"),
        ({**FRONT, "studies": ["one", "three"]}, "page.studies: 'three' is not in studies.yaml; allowed: one, two"),
        ({**FRONT, "studies": ["two"]}, "study two has no family 'mle', which is the baseline; it has random_top25, "),
        ({**FRONT, "quantiles": [0.1]}, "page.quantiles: unknown key; allowed: kind, studies, "),
        ({**FRONT, "confidence": 1}, "page.confidence: Input should be less than 1, got 1"),
        ({**FRONT, "kind": "thresholds", "families": ["topo"]}, "one has no objective at two of the quantiles; add"),
        ({**FRONT, "kind": "thresholds", "quantiles": [0.5]}, "page: 'quantiles' needs at least two, each once"),
        ({**FRONT, "kind": "thresholds", "families": []}, "page: 'families' is empty: name at least one"),
    ],
)
def test_each_mistake_has_a_sentence(tmp_path, entry, sentence):
    with pytest.raises(InputError) as error:
        load(tmp_path, {"page": entry})
    assert "comparisons.yaml: page" in str(error.value) and sentence in str(error.value)


def test_a_study_that_has_only_the_baseline_is_refused(tmp_path):
    studies = {"one": {**STUDY, "ablations": ["mle"]}}
    with pytest.raises(InputError, match="study one has no family but the baseline 'mle'; add ablations to it"):
        load(tmp_path, {"page": FRONT}, studies=studies)


def test_only_the_ablations_that_are_read_decide_the_version(tmp_path):
    thresholds = {"kind": "thresholds", "studies": ["one"], "families": ["paper_top"]}
    config = load(tmp_path, {"front": FRONT, "thresholds": thresholds})
    fields = comparison_fields(config, config.comparisons["thresholds"])
    assert list(fields["ablations"]["one"]) == ["mle", "paper_top25", "paper_top50"]
    assert "random_top25" in comparison_fields(config, config.comparisons["front"])["ablations"]["one"]
    disabled = load(tmp_path, {"front": FRONT}, studies={"one": {**STUDY, "enabled": False, "processes": 2}})
    same = [comparison_fields(one, one.comparisons["front"]) for one in (config, disabled)]
    assert same[0] == same[1]
