"""The two parts of a study's precision: how they are written, and which stages each of them decides."""

import shutil

import pytest
import yaml

from tests.support.paths import ROOT
from tokenuq_ml.config import PrecisionSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.graph import stage_groups

SHIPPED = ROOT / "config"
TRAINING = {"baseline_teacher", "teacher_hidden", "student"}
TABLES = {"token_losses", "reference_evaluation", "evaluation"}


def configured(folder, precision):
    """The shipped configuration, quickstart with that precision."""
    studies = yaml.safe_load((SHIPPED / "studies.yaml").read_text())
    study = studies["quickstart"]
    if precision is not None:
        study["precision"] = precision
    # Comparisons name other studies.
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("comparisons.yaml"))
    (folder / "studies.yaml").write_text(yaml.safe_dump({"quickstart": study}))
    return load_config(folder)


def versions(folder, precision):
    groups = stage_groups(configured(folder, precision))
    return {asset.name: (asset.stage, asset.code_version) for group in groups for asset in group.assets}


@pytest.fixture
def changed(tmp_path):
    """Stages of quickstart whose version differs from that of the shipped configuration."""
    shipped = versions(tmp_path / "config", None)

    def stages(precision):
        now = versions(tmp_path / "config", precision)
        assert now.keys() == shipped.keys()
        return {stage for name, (stage, version) in now.items() if version != shipped[name][1]}

    return stages


def test_a_single_precision_applies_to_training_and_tables(tmp_path):
    for precision in ("float32", {"training": "float32", "tables": "float32"}):
        study = configured(tmp_path / "config", precision).studies["quickstart"]
        assert study.precision == PrecisionSpec(training="float32", tables="float32")
    assert configured(tmp_path / "config", {"tables": "float32"}).studies["quickstart"].precision.training == "auto"
    assert configured(tmp_path / "config", None).studies["quickstart"].precision == PrecisionSpec()


def test_the_precision_of_tables_makes_no_training_stale(changed):
    # The report shows the study's settings.
    assert changed({"training": "auto", "tables": "float32"}) == TABLES | {"ablation_report"}


def test_the_precision_of_training_makes_no_table_stale(changed):
    assert changed({"training": "float32", "tables": "auto"}) == TRAINING | {"ablation_report"}


def test_bald_does_not_depend_on_the_precision(changed):
    """Neither `token_uncertainty` nor `curriculum` is among them."""
    assert changed("float32") == TRAINING | TABLES | {"ablation_report"}


def test_the_short_form_keeps_the_versions(changed):
    assert changed("auto") == set()


@pytest.mark.parametrize(
    "precision, words",
    [
        ("float16", "quickstart.precision.training: Input should be 'auto', 'float32' or 'bfloat16', got 'float16'"),
        ({"bald": "float32"}, "quickstart.precision.bald: unknown key; allowed: training, tables"),
        (32, "quickstart.precision"),
    ],
)
def test_other_values_are_refused_by_name(tmp_path, precision, words):
    with pytest.raises(InputError) as error:
        configured(tmp_path / "config", precision)
    assert words in str(error.value) and "studies.yaml" in str(error.value)
