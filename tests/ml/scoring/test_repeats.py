"""Near repeats: similarities against sets of word triples, and which of several texts is repeated."""

import random

import pytest

from tokenuq_ml.scoring.repeats import near_repeats

TEXT = "Tom has three red apples and buys five more of them at the market near his house on a rainy day in May"


def jaccard(one: str, other: str) -> float:
    def triples(text):
        words = text.lower().split()
        return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}

    return len(triples(one) & triples(other)) / len(triples(one) | triples(other))


def test_repeats_name_an_earlier_text_and_their_similarity():
    changed = TEXT.replace("May", "June").upper()
    found = near_repeats({"a": TEXT, "b": "Something else entirely, about trains.", "c": changed, "d": TEXT})
    assert found["example_id"].to_list() == ["c", "d"]
    assert found["repeat_of"].to_list() == ["a", "a"]
    assert found["similarity"].to_list() == pytest.approx([jaccard(TEXT, changed), 1.0])


def test_the_similarity_that_counts_is_a_choice():
    half = " ".join(TEXT.split()[:12]) + " and then something different happens to all of the people here"
    assert 0.2 < jaccard(TEXT, half) < 0.6
    assert near_repeats({"a": TEXT, "b": half}).is_empty()


def test_short_and_empty_texts():
    assert near_repeats({}).is_empty()
    found = near_repeats({"a": "42", "b": "42", "c": "43", "d": ""})
    assert found.rows() == [("b", "a", 1.0)]


def test_all_pairs_above_the_threshold_are_found():
    draw = random.Random(0)
    words = [f"w{number}" for number in range(400)]
    texts = {}
    for number in range(60):
        base = [draw.choice(words) for _ in range(80)]
        texts[f"{number:03d}"] = " ".join(base)
        base[draw.randrange(80)] = "changed"
        texts[f"{number:03d}/again"] = " ".join(base)
    found = dict(near_repeats(texts).select("example_id", "repeat_of").iter_rows())
    assert found == {f"{number:03d}/again": f"{number:03d}" for number in range(60)}
