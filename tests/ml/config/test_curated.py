"""Entries with `from` and `curated_by`: what they inherit, and what is refused in one sentence."""

import pytest

from tests.support.paths import CONFIG
from tokenuq_ml.config import CuratedDatasetSpec
from tokenuq_ml.config.load import Config, load_config
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.versions import dataset_fields

STUDY = "s: {model: smollm2_135m, dataset: clean, ablations: [mle_s0]}"


def load(folder, datasets: str, studies: str = "") -> Config:
    (folder / "curation").mkdir(exist_ok=True)
    (folder / "curation" / "reviewed.csv").write_text("example_id,keep\n")
    (folder / "datasets.yaml").write_text(datasets)
    (folder / "studies.yaml").write_text(studies)
    return load_config(CONFIG, folder)


def test_a_curated_dataset_has_the_splits_of_the_other_and_fields_of_its_own(tmp_path):
    config = load(tmp_path, "clean: {from: gsm_symbolic, curated_by: reviewed}", STUDY)
    spec = config.datasets["clean"]
    assert isinstance(spec, CuratedDatasetSpec) and spec.splits == ("train", "validation", "test")
    assert spec.path == str(tmp_path / "curation" / "reviewed.csv") and not spec.on_hub
    assert dataset_fields(config, "clean") == {"name": "clean", "from": "gsm_symbolic", "curated_by": "reviewed"}
    assert config.datasets_of(config.studies["s"]) == ["gsm_symbolic", "clean"]


def test_a_curated_dataset_can_be_curated_again_and_mixed(tmp_path):
    config = load(
        tmp_path,
        "again: {from: clean, curated_by: reviewed}\n"
        "clean: {from: gsm_symbolic, curated_by: reviewed}\n"
        "both: {format: mix, mix: {again: 1, gsm_symbolic_48: 1}, sizes: {train: 4}}\n",
    )
    assert config.datasets["again"].original.name == "gsm_symbolic"
    assert config.with_sources("both") == ["gsm_symbolic", "clean", "again", "gsm_symbolic_48", "both"]


@pytest.mark.parametrize(
    ("datasets", "said"),
    [
        ("clean: {from: clean, curated_by: reviewed}", "clean.from: clean would be made from itself; name another"),
        ("a: {from: b, curated_by: reviewed}\nb: {from: a, curated_by: reviewed}", "would be made from itself"),
        ("clean: {from: nope, curated_by: reviewed}", "clean.from: 'nope' is not in datasets.yaml; allowed: gsm_symb"),
        ("clean: {from: gsm_symbolic, curated_by: nope}", "clean.curated_by: no file nope.csv or nope.parquet in"),
        ("clean: {from: gsm_symbolic, curated_by: nope}", "(found: reviewed)"),
        ("clean: {from: gsm_symbolic, curated_by: ../x}", "'../x' is not a name"),
        ("clean: {from: gsm_symbolic}", "clean.curated_by: Field required"),
        ("clean: {curated_by: reviewed}", "clean.from: Field required"),
        (
            "clean: {from: gsm_symbolic, curated_by: reviewed, sizes: {train: 1}}",
            "clean.sizes: unknown key; allowed: from, curated_by",
        ),
        (
            "clean: {from: m, curated_by: reviewed}\nm: {format: mix, mix: {clean: 1}, sizes: {train: 1}}",
            "m.mix: m is made of itself",
        ),
    ],
)
def test_what_is_refused_names_the_file_and_the_key(tmp_path, datasets, said):
    with pytest.raises(InputError) as error:
        load(tmp_path, datasets)
    assert str(error.value).startswith(str(tmp_path / "datasets.yaml")) and said in str(error.value)
    assert "\n" not in str(error.value)


def test_two_files_of_one_name_are_refused(tmp_path):
    (tmp_path / "curation").mkdir()
    (tmp_path / "curation" / "reviewed.parquet").touch()
    with pytest.raises(InputError, match="are called 'reviewed'; rename one of them"):
        load(tmp_path, "clean: {from: gsm_symbolic, curated_by: reviewed}")


def test_no_study_has_the_name_of_the_curations(tmp_path):
    with pytest.raises(InputError, match="a study cannot be named 'curation'"):
        load(tmp_path, "", "curation: {model: smollm2_135m, dataset: gsm_symbolic, ablations: [mle_s0]}")
