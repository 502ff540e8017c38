"""The answer cache between runs: values are found again, incomplete lines are ignored, and models are never mixed."""

import pytest

from tokenuq_ml.evaluation.answer_cache import AnswerCache, key_of


def test_values_are_found_in_the_next_run(tmp_path):
    cache = AnswerCache(tmp_path, model="a", max_new_tokens=8)
    cache.put({"x": [1, 2], "y": []})
    cache.put({"z": [3]})
    again = AnswerCache(tmp_path, max_new_tokens=8, model="a")
    assert len(again) == 3 and "q" not in again
    assert [again[key] for key in "xyz"] == [[1, 2], [], [3]]


@pytest.mark.parametrize("other", [{"model": "b"}, {"max_new_tokens": 9}, {"adapter": "s"}])
def test_another_model_or_setting_has_an_empty_cache(tmp_path, other):
    AnswerCache(tmp_path, model="a", max_new_tokens=8).put({"x": [1]})
    assert len(AnswerCache(tmp_path, **{"model": "a", "max_new_tokens": 8, **other})) == 0


@pytest.mark.parametrize("cut_off", [1, 5, 12])
def test_an_incomplete_line_is_ignored_and_can_be_written_again(tmp_path, cut_off):
    cache = AnswerCache(tmp_path, model="a")
    cache.put({"x": [1]})
    cache.put({"y": [2], "z": [3]})
    content = cache.path.read_bytes()
    cache.path.write_bytes(content[:-cut_off])
    again = AnswerCache(tmp_path, model="a")
    # Without its end of line alone a batch is whole.
    assert len(again) == (3 if cut_off == 1 else 1) and again["x"] == [1]
    again.put({"y": [2], "z": [4]})
    last = AnswerCache(tmp_path, model="a")
    assert [last[key] for key in "xyz"] == [[1], [2], [4]]


def test_keys_distinguish_texts_and_their_boundaries():
    assert key_of("ab", "c") == key_of("ab", "c")
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of("abc"), key_of([1, 2]), key_of([12]), key_of(1, 2)}) == 6
