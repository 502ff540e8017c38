"""Selectors against their written rules."""

import pytest
import torch

from tokenuq_ml.config import SelectSpec, registry
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.errors import InputError
from tokenuq_ml.training import objectives, selectors
from tokenuq_ml.training.selection import extreme_quantile, select
from tokenuq_ml.training.tokens import Tokens, join


@pytest.mark.parametrize(
    ("quantile", "tokens", "expected"),
    [
        (0.25, 100, 25),
        (0.25, 101, 26),
        (0.1, 30, 3),
        (0.3, 10, 3),
        (1.0, 7, 7),
        (0.25, 1, 1),
        (0.25, 0, 0),
        (0.07, 100, 7),
    ],
)
def test_the_number_of_selected_tokens_is_the_exact_ceiling(quantile, tokens, expected):
    assert count_selected(quantile, tokens) == expected


def test_top_and_bottom_quantiles_equal_a_plain_sort():
    score = torch.randn(101, generator=torch.Generator().manual_seed(0))
    for keep, ordered in (("top", sorted(score.tolist(), reverse=True)), ("bottom", sorted(score.tolist()))):
        mask = extreme_quantile(score, 0.25, keep)
        assert sorted(score[mask].tolist(), reverse=keep == "top") == ordered[:26]


def test_of_equal_scores_the_earlier_tokens_are_selected():
    assert extreme_quantile(torch.tensor([1.0, 2.0, 2.0, 2.0]), 0.5).tolist() == [False, True, True, False]
    assert extreme_quantile(torch.zeros(4), 0.5, "bottom").tolist() == [True, True, False, False]


def test_the_registry_has_the_selectors_and_objectives_that_are_implemented():
    assert set(selectors.SELECTORS) == set(registry.SELECTORS)
    assert set(objectives.OBJECTIVES) == set(registry.OBJECTIVES)
    assert set(objectives.FACTORS) == {name for name, objective in registry.OBJECTIVES.items() if objective.scales_loss}


def tokens(count, **kwargs):
    return Tokens(torch.rand(count), torch.arange(count) // 3, **kwargs)


def test_all_selects_every_token():
    assert select(SelectSpec(by="all"), tokens(5)).all()


def test_joined_micro_batches_have_distinct_examples():
    parts = [tokens(5, columns={"bald": torch.ones(5)}), tokens(4, columns={"bald": torch.zeros(4)})]
    joined = join(parts)
    assert joined.example_N.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3]
    assert joined.column("bald").tolist() == [1] * 5 + [0] * 4
    named = join([tokens(3, example_ids=("a", "b")), tokens(3, example_ids=("c",))])
    assert named.example_N.tolist() == [0, 0, 0, 2, 2, 2] and named.example_ids == ("a", "b", "c")


def test_documents_are_selected_completely_by_their_mean_score():
    spec = SelectSpec(by="loss", quantile=0.5, unit="document")
    one = Tokens(torch.tensor([9.0, 0.0, 0.0, 4.0, 4.0, 1.0]), torch.tensor([0, 0, 0, 1, 1, 2]))
    assert select(spec, one).tolist() == [True, True, True, True, True, False]
    assert select(spec.model_copy(update={"keep": "bottom", "quantile": 0.3}), one).tolist() == [False] * 5 + [True]


def test_random_depends_only_on_seed_and_step_and_fixed_random_on_seed_and_example():
    fresh, fixed = SelectSpec(by="random", quantile=0.5), SelectSpec(by="fixed_random", quantile=0.5)
    at = lambda step, seed=0, names=("a", "b", "c", "d"): tokens(12, example_ids=names, step=step, seed=seed)  # noqa: E731
    assert torch.equal(select(fresh, at(1)), select(fresh, at(1)))
    assert not torch.equal(select(fresh, at(1)), select(fresh, at(2)))
    assert torch.equal(select(fixed, at(1)), select(fixed, at(2)))
    assert not torch.equal(select(fixed, at(1)), select(fixed, at(1, seed=1)))
    scores = selectors.fixed_random(at(1))
    # An example's draws do not depend on its place in the batch.
    assert torch.equal(selectors.fixed_random(at(1, names=("c", "d", "a", "b")))[:3], scores[6:9])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"by": "bald"}, "column 'bald' of the table token_uncertainty"),
        ({"by": "fixed_random"}, "override `example_ids`"),
        ({"by": "loss", "keep": "above", "threshold": "teacher_mean"}, "override `teacher_mean`"),
    ],
)
def test_a_score_that_needs_what_the_trainer_does_not_provide_raises(spec, message):
    with pytest.raises(InputError, match=message):
        select(SelectSpec(**spec), tokens(5))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bald", "reads column 'bald' of the table token_uncertainty, which this Trainer does not provide"),
        ("student_entropy", "`columns` do not name 'student_entropy'; add it"),
        ("entropie", "`columns` do not name 'entropie'; add it, if it is one of teacher_loss"),
    ],
)
def test_a_column_that_is_missing_is_named_with_what_to_do(name, said):
    with pytest.raises(InputError, match=said):
        tokens(3).column(name)
