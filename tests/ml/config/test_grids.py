"""Grids of studies: which studies and datasets a `grid` stands for, and the sentence for each mistake."""

from pathlib import Path

import pytest
import yaml

from tests.support.tiny_language import GRAMMAR, LLAMA
from tokenuq_ml.config.load import load_config
from tokenuq_ml.config.sources import DatasetSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.versions import comparison_fields, dataset_fields, study_fields

TALK = {"format": "synthetic_language", "grammar": GRAMMAR, "sizes": {"train": 10, "ood": 4}}
SIZES = {"train": 4, "validation": 2, "test": 2}
POST = {"format": "synthetic_language", "language": "talk", "world": "post", "sizes": SIZES}
STUDY = {"model": "tiny", "dataset": "post", "ood": ["talk"], "ablations": ["mle"]}
GRID = {"noise": [0.0, 0.25], "zipf": [1.0, 1.5]}


def config_of(folder: Path, grid=GRID, post=POST, datasets=None, studies=None, written=None, **keys):
    """Load a study with a grid, on `written` ablations; `keys` are others of the study."""
    files = {
        "datasets": {"talk": TALK, "post": post, **(datasets or {})},
        "models": {"tiny": {"source": "pretrain", "language": "talk", "config": LLAMA}},
        "studies": {"phase": {**STUDY, "grid": grid, **keys}, **(studies or {})},
        "ablations": written or {"mle": {"select": "all"}},
    }
    for kind, entries in files.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(entries))
    return load_config(folder)


def test_a_grid_stands_for_a_study_and_a_dataset_per_cell(tmp_path):
    config = config_of(tmp_path, seeds=2)
    cells = ["phase_noise0_zipf1", "phase_noise0_zipf1p5", "phase_noise0p25_zipf1", "phase_noise0p25_zipf1p5"]
    assert list(config.studies) == cells == list(config.studies_of("phase"))
    assert config.studies_of(cells[0]) == (cells[0],) and config.studies_of("other") == ()
    assert config.grids["phase"][cells[3]].fields() == {"noise": 0.25, "zipf": 1.5}
    study = config.studies[cells[3]]
    assert study.ablations == ("mle", "mle_s1") and study.grid is None
    # Everything but the data is shared: the base model, and the language that it was pre-trained on.
    assert config.datasets_of(study) == ["talk", "post_noise0p25_zipf1p5"] and study.model == "tiny"
    fields = dataset_fields(config, study.dataset)
    assert fields["changes"] == {"noise": 0.25, "zipf": 1.5} and fields["sizes"] == SIZES
    assert "grid" not in study_fields(config, study, "ablation_report")["study"]


def test_a_grid_adds_to_the_changes_of_its_dataset(tmp_path):
    config = config_of(tmp_path, grid={"zipf": [0.5]}, post={**POST, "changes": {"noise": 0.1}})
    (study,) = config.studies.values()
    assert (study.name, study.dataset) == ("phase_zipf0p5", "post_zipf0p5")
    assert config.datasets[study.dataset].changes.fields() == {"noise": 0.1, "zipf": 0.5}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"grid": {}}, "phase.grid: 'grid' lists no knob; give values of noise or zipf"),
        ({"grid": {"noise": []}}, "phase.grid: 'noise' is empty"),
        ({"grid": {"noise": [0.1, 0.1]}}, "'noise' holds a value twice: 0.1, 0.1"),
        ({"grid": {"noise": [1.5]}}, "phase.grid.noise.0: Input should be less than 1, got 1.5"),
        ({"grid": {"facts": [10]}}, "phase.grid.facts: unknown key; allowed: noise, zipf"),
        ({"dataset": "talk", "ood": []}, "phase.grid: changes knobs .* is 'talk'; name one of world 'post': post"),
        ({"post": {**POST, "changes": {"zipf": 2.0}}}, "phase.grid: lists 'zipf', which 'changes' of post sets"),
        ({"datasets": {"post_noise0_zipf1": POST}}, "phase.grid: makes 'post_noise0_zipf1', which datasets.yaml has"),
        ({"studies": {"phase_noise0_zipf1": STUDY}}, "makes 'phase_noise0_zipf1', which studies.yaml has too"),
    ],
)
def test_wrong_grids_are_refused(tmp_path, given, says):
    with pytest.raises(InputError, match=says):
        config_of(tmp_path, **given)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({**POST, "world": "pre", "changes": {"noise": 0.1}}, "'changes' needs 'language' and world 'post'"),
        ({**TALK, "changes": {"noise": 0.1}}, "'changes' needs 'language' and world 'post'"),
        ({**POST, "changes": {}}, "'changes' is empty; give one of noise, zipf"),
        ({**POST, "changes": {"facts": 9}}, "Extra inputs are not permitted"),
        ({"format": "gsm8k", "path": "x", "sizes": "all", "changes": {"noise": 0.1}}, "'changes' needs format"),
    ],
)
def test_wrong_changes_are_refused(entry, says):
    with pytest.raises(ValueError, match=says):
        DatasetSpec(name="d", **entry)


def test_a_dataset_without_changes_keeps_its_fields():
    assert "changes" not in DatasetSpec(name="d", **POST).fields()


PHASE = {"kind": "phase_diagram", "studies": ["phase"], "rounds": [2, 3]}
FAMILIES = {"mle": {"select": "all"}, "top": {"select": {"by": "loss", "quantile": 0.25}}}


def diagram_of(folder, options=None, **study):
    """Load a phase diagram of the study with a grid."""
    (folder / "comparisons.yaml").write_text(yaml.safe_dump({"map": {**PHASE, **(options or {})}}))
    return config_of(folder, **{"seeds": 4, "ablations": ["mle", "top"], "written": FAMILIES, **study})


def test_a_phase_diagram_reads_the_seeds_of_its_rounds_and_needs_those_of_the_first(tmp_path):
    config = diagram_of(tmp_path)
    spec = config.comparisons["map"]
    assert spec.studies == config.studies_of("phase")
    study = config.studies[spec.studies[0]]
    assert spec.ablations_read(study, config.ablations) == ("mle", "mle_s1", "mle_s2", "top", "top_s1", "top_s2")
    assert spec.optional_ablations(study, config.ablations) == {"mle_s2", "top_s2"}
    fields = comparison_fields(config, spec)
    assert fields["knobs"]["phase_noise0p25_zipf1"] == {"noise": 0.25, "zipf": 1.0}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"options": {"rounds": [3, 2]}}, "'rounds' are numbers of seeds that rise from look to look, are 3, 2"),
        ({"options": {"rounds": []}}, "that rise from look to look, are none"),
        ({"options": {"rounds": [1, 3]}}, "map.rounds.0: Input should be greater than or equal to 2, got 1"),
        ({"options": {"margin": -0.1}}, "map.margin: Input should be greater than or equal to 0"),
        ({"seeds": 2}, r"has 2 seeds of mle, and 'rounds' ends with 3; set `seeds: 3` of the study, or lower 'rounds'"),
        ({"sweep": {"learning_rate": [0.1, 0.2]}}, "trains mle at 2 settings, and this kind compares families at one"),
        ({"ood": []}, "has no dataset in 'ood'"),
        ({"ablations": ["top"]}, "has no family 'mle', which is the baseline"),
        (
            {"grid": {"noise": [0.0, 0.1]}},
            "map.studies: phase_noise0 is no cell of a grid of noise and zipf; .*none yet",
        ),
    ],
)
def test_what_a_phase_diagram_cannot_compare_is_refused(tmp_path, given, says):
    with pytest.raises(InputError, match=says):
        diagram_of(tmp_path, **given)


def test_two_studies_of_a_phase_diagram_have_other_knobs(tmp_path):
    other = {**STUDY, "grid": GRID, "seeds": 4, "ablations": ["mle", "top"], "dataset": "second"}
    given = {"studies": {"other": other}, "datasets": {"second": POST}, "options": {"studies": ["phase", "other"]}}
    with pytest.raises(InputError, match="map.studies: two studies have the same noise and zipf; name one grid only"):
        diagram_of(tmp_path, **given)
