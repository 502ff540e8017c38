"""Which ablations share a plot, and the notes of the family table."""

import polars as pl
import pytest

from tests.support import tiny_tables
from tokenuq_ml.config import AblationSpec, EvaluationSpec
from tokenuq_ml.reports import family_plots, family_sections
from tokenuq_ml.reports.ablation_table import table_rows
from tokenuq_ml.reports.family_table import family_rows


def ablations(**sentences) -> dict[str, AblationSpec]:
    return {name: AblationSpec(name=name, **fields) for name, fields in sentences.items()}


def by_loss(quantile, **more) -> dict:
    return {"select": {"by": "loss", "quantile": quantile, **more}}


class TestQuantileSets:
    def test_a_curve_has_families_that_differ_only_in_the_quantile(self):
        found = family_sections.quantile_sets(
            ablations(
                mle={"select": "all"},
                paper_top25=by_loss(0.25) | {"rest": "distill"},
                paper_top25_s1=by_loss(0.25) | {"rest": "distill", "seed": 1},
                paper_top50=by_loss(0.5) | {"rest": "distill"},
                masked_top50=by_loss(0.5),
                masked_top75=by_loss(0.75),
                masked_bottom25=by_loss(0.25, keep="bottom"),
                random25={"select": {"by": "random", "quantile": 0.25}},
            )
        )
        assert found == {
            "paper_top": {"paper_top25": 0.25, "paper_top50": 0.5},
            "masked_top": {"masked_top50": 0.5, "masked_top75": 0.75},
        }

    def test_schedules_thresholds_and_single_quantiles_make_no_curve(self):
        found = family_sections.quantile_sets(
            ablations(
                a=by_loss(0.25),
                anneal=by_loss({"start": 0.75, "end": 0.25}),
                above={"select": {"by": "loss", "keep": "above", "threshold": 1.0}},
                b=by_loss(0.25),
            )
        )
        assert found == {}

    def test_curves_without_a_common_name_prefix_have_different_names(self):
        fields = {
            "a": by_loss(0.2),
            "b": by_loss(0.4),
            "c": by_loss(0.2, keep="bottom"),
            "d": by_loss(0.4, keep="bottom"),
        }
        assert list(family_sections.quantile_sets(ablations(**fields))) == ["a", "c"]


def test_compared_selections_are_partial_and_of_one_seed():
    given = ablations(
        mle={"select": "all"},
        all_by_loss=by_loss(1.0),
        top_s1=by_loss(0.25) | {"seed": 1},
        random_s1={"select": {"by": "random", "quantile": 0.25}, "seed": 1},
        top=by_loss(0.25),
    )
    assert family_sections.compared_selections(given) == ["top_s1", "random_s1"]
    assert family_sections.compared_selections({**given, **ablations(other=by_loss(0.5))}) == ["top", "other"]
    assert family_sections.compared_selections(ablations(mle={"select": "all"}, top=by_loss(0.25))) == []


def test_overlap_shows_the_anchor_even_if_it_is_last(tmp_path, monkeypatch):
    many = {
        f"r{n:02d}": {"select": {"by": "random", "quantile": 0.25}} for n in range(family_sections.MAX_COMPARED + 3)
    }
    given = ablations(**many, paper_top25=by_loss(0.25))
    drawn = {}
    monkeypatch.setattr(
        family_plots, "overlap_matrix", lambda found, names, path: (drawn.update(names=names), path.touch())
    )
    monkeypatch.setattr(
        family_plots, "overlap_over_steps", lambda found, anchor, path: (drawn.update(anchor=anchor), path.touch())
    )
    frames = {name: tiny_tables.selections(0.25, draw=n).lazy() for n, name in enumerate(given)}
    text = family_sections.overlap(given, frames, tmp_path)
    assert text.startswith('<div class="plots wide">')
    assert (
        drawn["anchor"] == "paper_top25" == drawn["names"][-1] and len(drawn["names"]) == family_sections.MAX_COMPARED
    )
    assert f"{family_sections.MAX_COMPARED} of {len(given)} selections are shown" in text


def results(given: dict[str, AblationSpec]) -> str:
    losses = {name: 1.0 + 0.1 * n for n, name in enumerate(("base", "teacher", *given))}
    table = table_rows({name: tiny_tables.evaluations(loss, 0.1) for name, loss in losses.items()})
    examples = {name: tiny_tables.evaluation_examples(loss) for name, loss in losses.items()}
    spec = EvaluationSpec(bootstrap=50)
    return family_sections.results(family_rows(table, examples, given, spec), table, given, spec)


@pytest.mark.parametrize(
    "given, said",
    [
        (ablations(mle={"select": "all"}, top=by_loss(0.25)), "Each family has one seed"),
        (ablations(mle={"select": "all"}, mle_s1={"select": "all", "seed": 1}), "With few seeds"),
        (
            ablations(top=by_loss(0.25), low=by_loss(0.5)),
            "no family mle, so families are compared with its first one, top",
        ),
        # 2 datasets, one family that is compared: 2 differences, 5% of which round to 0.
        (ablations(mle={"select": "all"}, top=by_loss(0.25)), "of 2 differences that are truly 0, about 0.1 would"),
    ],
)
def test_the_notes_name_the_limits_of_the_intervals(given, said):
    assert said in results(given)


def test_quantile_points_are_the_families_losses(tmp_path, monkeypatch):
    given = ablations(mle={"select": "all"}, top25=by_loss(0.25), top50=by_loss(0.5))
    losses = {"base": 3.0, "mle": 1.0, "top25": 0.5, "top50": 0.7}
    table = table_rows({name: tiny_tables.evaluations(loss, 0.1) for name, loss in losses.items()})
    examples = {name: tiny_tables.evaluation_examples(loss) for name, loss in losses.items()}
    families = family_rows(table, examples, given, EvaluationSpec(bootstrap=50))
    drawn = {}

    def keep(points, baseline, name, path):
        drawn.update(points=points, baseline=baseline, name=name)
        path.touch()

    monkeypatch.setattr(family_plots, "quantile_curves", keep)
    assert "top: top25, top50." in family_sections.quantiles(families, given, tmp_path)
    value = {(row["family"], row["split"]): row["value"] for row in families}
    assert drawn["points"].filter(pl.col("split") == "ood").select("curve", "quantile", "value").rows() == [
        ("top", 0.25, value["top25", "ood"]),
        ("top", 0.5, value["top50", "ood"]),
    ]
    assert drawn["name"] == "mle"
    assert drawn["baseline"]["value"].to_list() == [value["mle", "test"], value["mle", "ood"]]
    assert family_sections.quantiles(families, ablations(mle={"select": "all"}, top25=by_loss(0.25)), tmp_path) is None
