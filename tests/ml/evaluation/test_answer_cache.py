"""The answer cache between runs: values are found again, incomplete lines are ignored, and models are never mixed."""

import pytest

from tokenuq_ml.evaluation.answer_cache import AnswerCache, key_of


def test_what_was_kept_is_there_in_the_next_run(tmp_path):
    cache = AnswerCache(tmp_path, model="a", max_new_tokens=8)
    cache.put({"x": [1, 2], "y": []})
    cache.put({"z": [3]})
    again = AnswerCache(tmp_path, max_new_tokens=8, model="a")
    assert len(again) == 3 and "q" not in again
    assert [again[key] for key in "xyz"] == [[1, 2], [], [3]]


@pytest.mark.parametrize("other", [{"model": "b"}, {"max_new_tokens": 9}, {"adapter": "s"}])
def test_another_model_or_setting_finds_nothing(tmp_path, other):
    AnswerCache(tmp_path, model="a", max_new_tokens=8).put({"x": [1]})
    assert len(AnswerCache(tmp_path, **{"model": "a", "max_new_tokens": 8, **other})) == 0


@pytest.mark.parametrize("cut_off", [1, 5, 12])
def test_a_batch_that_was_being_written_does_not_count_and_does_not_hurt(tmp_path, cut_off):
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


def test_keys_tell_texts_and_their_borders_apart():
    assert key_of("ab", "c") == key_of("ab", "c")
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of("abc"), key_of([1, 2]), key_of([12]), key_of(1, 2)}) == 6
