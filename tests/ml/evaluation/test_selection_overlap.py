"""The overlap of selections against Python sets."""

import numpy as np
import polars as pl
import pytest

from tokenuq_ml.evaluation.selection_overlap import selection_overlap


def selections(draw: np.random.Generator, share: float, steps: int = 4) -> pl.DataFrame:
    """Every token of the same batches, `share` of them selected at random."""
    keys = [
        (step, f"toy/{step}{example}", position)
        for step in range(1, steps + 1)
        for example in "ab"
        for position in range(9)
    ]
    frame = pl.DataFrame(keys, schema={"step": pl.Int32, "example_id": pl.String, "position": pl.Int32}, orient="row")
    return frame.with_columns(selected=pl.Series(draw.random(len(keys)) < share))


def sets(frame: pl.DataFrame) -> dict[int, set]:
    found: dict[int, set] = {}
    for step, example, position, selected in frame.iter_rows():
        if selected:
            found.setdefault(step, set()).add((example, position))
    return found


def test_the_overlap_is_that_of_python_sets():
    draw = np.random.default_rng(0)
    frames = {name: selections(draw, share) for name, share in {"a": 0.3, "b": 0.5, "c": 1.0, "d": 0.05}.items()}
    found = selection_overlap({name: frame.lazy() for name, frame in frames.items()})
    names, expected = list(frames), []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            for step in range(1, 5):
                left, right = sets(frames[a]).get(step, set()), sets(frames[b]).get(step, set())
                either = len(left | right)
                expected.append((a, b, step, len(left & right), either, len(left & right) / either if either else None))
    assert found.rows() == expected
    assert any(0 < row[-1] < 1 for row in expected)


def test_a_step_without_selected_tokens_has_no_index():
    some = pl.DataFrame({"step": [1, 2], "example_id": ["x", "y"], "position": [1, 2], "selected": [False, True]})
    none = some.with_columns(selected=pl.Series([False, False]))
    found = selection_overlap({"a": none.lazy(), "b": none.lazy(), "c": some.lazy()})
    assert found.filter(a="a", b="b").select("step", "both", "either", "jaccard").rows() == [(2, 0, 0, None)]
    assert found.filter(a="b", b="c").select("step", "jaccard").rows() == [(2, 0.0)]


def test_the_largest_number_of_models_is_compared():
    frames = {str(n): selections(np.random.default_rng(n % 2), 0.5).lazy() for n in range(64)}
    found = selection_overlap(frames)
    assert (found.filter(a="61", b="63")["jaccard"] == 1).all() and (found.filter(a="62", b="63")["jaccard"] < 1).all()
    with pytest.raises(ValueError, match="65 ablations"):
        selection_overlap({**frames, "more": frames["0"]})


def test_one_selection_has_no_pair():
    assert selection_overlap({"a": selections(np.random.default_rng(0), 0.5).lazy()}).is_empty()
    assert selection_overlap({}).columns == ["a", "b", "step", "both", "either", "jaccard"]
