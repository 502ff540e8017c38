"""Which studies the graph shows: enabled ones, those that the store holds something of, and those that are named."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import CONFIG, ROOT
from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.shown_studies import STUDIES_VARIABLE, config_of, named_studies, shown_config
from tokenuq_pipeline.runtime.store import Store

pytestmark = pytest.mark.slow

ENABLED = ["quickstart", "ablation_matrix"]
STUDIES = ["alpaca_gemma_2b", "alpaca_gemma_2_2b", "gsm8k_phi_2"]


@pytest.fixture(scope="module")
def config():
    return load_config(CONFIG)


def shown(config, store, named=""):
    return shown_config(config, store, {STUDIES_VARIABLE: named})


def test_an_empty_store_shows_enabled_studies_with_what_they_need(config, tmp_path):
    found = shown(config, Store(tmp_path))
    assert list(found.studies) == ENABLED and list(found.models) == ["smollm2_135m"]
    needed = {name for study in ENABLED for name in config.datasets_of(config.studies[study])}
    assert set(found.datasets) == needed and "dolly" not in needed


@pytest.mark.parametrize(
    "made",
    [".manifests/alpaca_phi_2/tokenized_dataset.json", "tokenized_dataset/study=alpaca_phi_2/part-0.parquet"],
)
def test_a_study_that_was_made_is_shown_also_while_its_manifest_is_replaced(config, tmp_path, made):
    path = tmp_path / made
    path.parent.mkdir(parents=True)
    path.touch()
    found = shown(config, Store(tmp_path))
    assert list(found.studies) == [*ENABLED, "alpaca_phi_2"] and list(found.models) == ["smollm2_135m", "phi_2"]
    assert {"alpaca", "gsm8k_test"} < set(found.datasets)


def test_what_was_deleted_removed_or_is_in_the_trash_is_not_shown(config, tmp_path):
    for folder in (".manifests/alpaca_phi_2", ".trash/student/study=alpaca_phi_2", ".checkpoints/alpaca_phi_2"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".manifests/gone_study").mkdir()
    (tmp_path / ".manifests/gone_study/token_losses.json").touch()
    assert list(shown(config, Store(tmp_path)).studies) == ENABLED


def test_models_and_datasets_of_the_store_are_shown_without_a_study(config, tmp_path):
    for name in ("models/gemma_2b", "datasets/dolly"):
        path = tmp_path / ".manifests" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.touch()
    found = shown(config, Store(tmp_path))
    assert list(found.studies) == ENABLED and "gemma_2b" in found.models and "dolly" in found.datasets


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", set()),
        (" , ", set()),
        ("gsm8k_phi_2", {"gsm8k_phi_2"}),
        ("gsm8k_phi_2,alpaca_gemma_2b", {"gsm8k_phi_2", "alpaca_gemma_2b"}),
        ("alpaca_gemma_*  gsm8k_phi_2", set(STUDIES)),
        ("*", set(STUDIES)),
        ("*_[2p]*", set(STUDIES)),
    ],
)
def test_names_and_globs_are_separated_by_commas_or_spaces(text, expected):
    assert named_studies(text, STUDIES) == expected


@pytest.mark.parametrize(
    "text, listed",
    [
        ("alpaca_gema_2b", "did you mean alpaca_gemma_2b or alpaca_gemma_2_2b?"),
        ("gsm8k_phi_2 Alpaca_gemma_*", "did you mean alpaca_gemma_2b or alpaca_gemma_2_2b?"),
        ("zzz", f"there are {', '.join(STUDIES)}"),
    ],
)
def test_a_name_that_matches_nothing_is_one_sentence_with_the_nearest_names(text, listed):
    with pytest.raises(InputError) as error:
        named_studies(text, STUDIES)
    wrong = text.split()[-1]
    assert str(error.value) == f"TOKENUQ_STUDIES: {wrong!r} matches no study in studies.yaml; {listed}"


def test_a_part_of_a_configuration_has_the_same_assets_as_all_of_it(config):
    complete = assets_by_name(config)
    for study in config.studies:
        part = assets_by_name(config_of(config, [study]))
        assert all(complete[name].code_version == asset.code_version for name, asset in part.items())
        assert {dep for asset in part.values() for dep in asset.deps} <= {asset.path for asset in part.values()}
        assert {name for name in complete if name.startswith(f"{study}/")} <= set(part)


@pytest.mark.slow
def test_dagster_loads_five_groups_and_jobs_schedules_and_sensors_of_shown_studies_only(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "data.jsonl").touch()
    (tmp_path / "datasets.yaml").write_text(
        "mine: {format: messages, path: data.jsonl, sizes: {train: 3, validation: 1, test: 1}}\n"
    )
    (tmp_path / "studies.yaml").write_text("small: {model: smollm2_135m, dataset: mine, ablations: [mle_s0]}\n")
    code = (
        "import json; from tokenuq_pipeline.definitions import defs; "
        "print(json.dumps([sorted({spec.group_name.split('/')[0] for spec in defs.resolve_all_asset_specs()}), "
        "[one.name for one in defs.jobs], [one.name for one in defs.schedules], [one.name for one in defs.sensors]]))"
    )
    variables = {"TOKENUQ_CONFIG": str(tmp_path), "TOKENUQ_HOME": str(tmp_path / "store"), "TOKENUQ_STUDIES": "*phi_2"}
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **variables}
    )
    groups, jobs, schedules, sensors = json.loads(process.stdout)
    enabled, named = [*ENABLED, "small"], ["alpaca_phi_2", "sharegpt_phi_2", "gsm8k_phi_2"]
    assert groups == sorted([*enabled, *named, "files", "models", "datasets"])
    of_studies = [name for name in jobs if name in load_config(CONFIG, tmp_path).studies]
    assert sorted(of_studies) == sorted([*enabled, *named])
    assert [name for name in schedules if name.endswith("__rerun")] == [f"{name}__rerun" for name in enabled]
    assert [name for name in sensors if name.endswith("__automation")] == [f"{name}__automation" for name in enabled]
