"""Column lineage: every column that it names exists, and every edge is a dependency of the graph."""

from dataclasses import replace

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.config import AblationSpec, DatasetSpec, StudySpec
from tokenuq_ml.config.curated import CuratedEntry, with_curated
from tokenuq_ml.config.truth import LANGUAGE
from tokenuq_ml.data.curation import EMPTY_DECISIONS
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.lineage import SOURCES, column_lineage
from tokenuq_pipeline.assets.observed_files import file_assets


def assets_of(config):
    return {asset.key: asset for asset in assets_by_name(config).values()}


def curated_config(folder):
    """The toy study on `clean`, which is made from `toy` by a reviewed file, and a mix of both."""
    parent = toy_config().datasets["toy"]
    entry = CuratedEntry(**{"name": "clean", "from": "toy", "curated_by": "reviewed"})
    (folder / "curation").mkdir()
    (folder / "curation" / "reviewed.csv").write_text("example_id,keep\n")
    config = toy_config(dataset="clean")
    origins = {("datasets", "clean"): folder / "datasets.yaml"}
    mixed = DatasetSpec(name="mixed", format="mix", mix={"toy": 1, "clean": 1}, sizes=parent.sizes)
    datasets = with_curated({**config.datasets, "clean": entry, "mixed": mixed}, origins, [folder])
    swept = StudySpec(**{**config.studies[STUDY].fields(), "name": "swept", "teacher_sweep": {"epochs": [1, 2]}})
    # A study whose truth is known.
    datasets["words"] = parent.model_copy(update={"name": "words", "format": LANGUAGE})
    known = StudySpec(**{**config.studies[STUDY].fields(), "name": "known", "dataset": "words"})
    # A study that selects by the teacher's change.
    change = AblationSpec(name="change", select={"by": "change", "quantile": 0.5})
    changed = StudySpec(**{**config.studies[STUDY].fields(), "name": "changed", "ablations": ["change"]})
    # A study with an ensemble of teachers.
    several = {"estimators": ["adapter_ensemble"], "members": 2}
    ensemble = StudySpec(**{**config.studies[STUDY].fields(), "name": "ensemble", "uncertainty": several})
    studies = {**config.studies, "swept": swept, "known": known, "changed": changed, "ensemble": ensemble}
    return replace(config, datasets=datasets, studies=studies, ablations={**config.ablations, "change": change})


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return assets_of(curated_config(tmp_path_factory.mktemp("config")))


def test_columns_and_edges_exist(assets):
    for asset in assets.values():
        lineage = column_lineage(asset)
        for column, deps in (lineage.deps_by_column if lineage else {}).items():
            assert column in TABLES[asset.table].columns, (asset.name, column)
            for dep in deps:
                assert tuple(dep.asset_key.path) in (*asset.reads, *asset.observed), (asset.name, dep)
                if dep.asset_key.path[0] == "curation":
                    assert dep.column_name in EMPTY_DECISIONS
                    continue
                assert dep.column_name in TABLES[assets[dep.asset_key].table].columns, (asset.name, dep)


def test_every_source_is_used_by_some_asset(assets):
    """None of the table's rows is about an input that no stage has."""
    for stage, columns in SOURCES.items():
        lineages = [column_lineage(asset) for asset in assets.values() if asset.stage == stage]
        found = [lineage.deps_by_column for lineage in lineages if lineage]
        for column, origins in columns.items():
            names = {dep.column_name for deps in found for dep in deps.get(column, ())}
            assert names, (stage, column)
            # What a selection reads follows from the ablation.
            if stage != "reference_evaluation" and (stage, column) != ("student", "selected_share"):
                assert names == {name for _, name in origins}, (stage, column)


def test_lineage_runs_through_a_curated_dataset(assets, tmp_path):
    """Before: it stopped there, because only `tokenized_dataset` named columns of datasets."""
    deps = column_lineage(assets[dg.AssetKey(["datasets", "clean"])]).deps_by_column
    toy, reviewed = dg.AssetKey(["datasets", "toy"]), dg.AssetKey(["curation", "reviewed"])
    assert deps["messages"] == [dg.TableColumnDep(toy, "messages")]
    assert set(deps["turn_weights"]) == {dg.TableColumnDep(toy, "turn_weights"), dg.TableColumnDep(reviewed, "weight")}
    assert dg.TableColumnDep(reviewed, "keep") in deps["example_id"]
    clean = dg.AssetKey(["datasets", "clean"])
    tokens = column_lineage(assets[dg.AssetKey([STUDY, "tokenized_dataset"])]).deps_by_column
    assert dg.TableColumnDep(clean, "untrained_spans") in tokens["response_mask"]
    mixed = column_lineage(assets[dg.AssetKey(["datasets", "mixed"])]).deps_by_column
    assert {dep.asset_key for dep in mixed["messages"]} == {toy, clean}
    assert column_lineage(assets[toy]) is None
    file = next(one for one in file_assets(curated_config(tmp_path)) if one.key == reviewed)
    assert {column.name for column in file.metadata["dagster/column_schema"].schema.columns} >= set(EMPTY_DECISIONS)


def test_token_losses_reach_the_evaluation(assets):
    lineage = column_lineage(assets[dg.AssetKey([STUDY, "top", "evaluation"])])
    losses = dg.TableColumnDep(dg.AssetKey([STUDY, "token_losses"]), "loss")
    assert losses in lineage.deps_by_column["value"]


def test_a_students_selection_comes_from_what_it_reads(assets):
    config = toy_config(ablations=["by_bald"])
    config.ablations["by_bald"] = AblationSpec(name="by_bald", select={"by": "bald", "quantile": 0.5}, rest="none")
    student = assets_of(config)[dg.AssetKey([STUDY, "by_bald", "student"])]
    bald = dg.TableColumnDep(dg.AssetKey([STUDY, "token_uncertainty"]), "bald")
    assert bald in column_lineage(student).deps_by_column["selected_share"]
    plain = assets[dg.AssetKey([STUDY, "mle", "student"])]
    assert bald not in column_lineage(plain).deps_by_column["selected_share"]
