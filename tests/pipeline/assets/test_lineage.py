"""Column lineage: every column that it names exists, and every edge is a dependency of the graph."""

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.lineage import SOURCES, column_lineage


def assets_of(config):
    return {asset.key: asset for asset in assets_by_name(config).values()}


@pytest.fixture(scope="module")
def assets():
    return assets_of(toy_config())


def test_columns_and_edges_exist(assets):
    for asset in assets.values():
        lineage = column_lineage(asset)
        for column, deps in (lineage.deps_by_column if lineage else {}).items():
            assert column in TABLES[asset.table].columns, (asset.name, column)
            for dep in deps:
                assert tuple(dep.asset_key.path) in asset.deps, (asset.name, dep)
                assert dep.column_name in TABLES[assets[dep.asset_key].table].columns, (asset.name, dep)


def test_every_source_is_used_by_some_asset(assets):
    """None of the table's rows is about an input that no stage has."""
    for stage, columns in SOURCES.items():
        found = [column_lineage(asset).deps_by_column for asset in assets.values() if asset.stage == stage]
        for column, origins in columns.items():
            names = {dep.column_name for deps in found for dep in deps.get(column, ())}
            assert names, (stage, column)
            if stage not in ("reference_evaluation",):
                assert names == {name for _, name in origins}, (stage, column)


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
