"""What is drawn follows the distributions that are called the truth; knobs do what their names say."""

import math
from collections import Counter
from random import Random

import pytest
from pydantic import ValidationError

from tokenuq_ml.config.language import SLOTS, GrammarSpec
from tokenuq_ml.data.language.grammar import Form, Item, Language
from tokenuq_ml.data.language.words import END, Words
from tokenuq_ml.data.language.worlds import decaying_probabilities, entropy

PRE, POST, SHUFFLED = Form("pre"), Form("post"), Form("post", shuffled=True)


def test_every_distribution_is_one_and_noise_only_touches_facts():
    language, draw = Language(GrammarSpec(noise=0.2, values=8), 3), Random(0)
    for form in (PRE, POST, SHUFFLED):
        for _ in range(50):
            slots = language.slots(form, language.draw_items(form, draw))
            for slot in slots:
                assert math.isclose(sum(slot.probabilities), 1) and math.isclose(sum(slot.clean), 1)
                assert len(set(slot.support)) == len(slot.support) == len(slot.probabilities) == len(slot.clean)
                noisy = slot.probabilities != slot.clean
                assert noisy == (slot.slot == "fact" and not form.shuffled)
                assert set(slot.support) <= set(language.words.vocabulary)
            assert slots[-1].support == (END,)


def test_the_answers_are_what_the_prompt_asks_for():
    language = Language(GrammarSpec(items=2, shares=dict(zip(SLOTS, (0.6, 0.1, 0.1, 0.1, 0.1), strict=True))), 0)
    key = language.words.keys[3]
    items = (Item("copy", (key,)), Item("computation", ("7", "5")))
    assert language.prompt(PRE, items) == f"first repeat {key} second add 7 5"
    assert language.prompt(POST, items) == f"{key} echo alpha 7 5 sum bravo"
    answers = [slot.support for slot in language.slots(POST, items) if slot.slot != "structure"]
    assert answers == [(key,), ("12",)]
    facts = {form: language.slots(form, (Item("fact", (key,)),)) for form in (PRE, POST)}
    for form, slots in facts.items():
        (fact,) = (slot for slot in slots if slot.slot == "fact")
        assert fact.support == (language.worlds[form.world].value_of[key],) and fact.entropy == 0


def test_noise_is_spread_over_all_values():
    language = Language(GrammarSpec(noise=0.3, values=5), 1)
    key = language.words.keys[0]
    slots = language.slots(PRE, (Item("fact", (key,)),))
    (fact,) = (slot for slot in slots if slot.slot == "fact")
    true = language.worlds["pre"].value_of[key]
    assert fact.clean == tuple(float(value == true) for value in fact.support)
    assert dict(zip(fact.support, fact.probabilities, strict=True))[true] == pytest.approx(0.7 + 0.06)
    assert fact.loss(true) == pytest.approx(-math.log(0.76))


def test_drawn_words_follow_their_distribution():
    language, draw = Language(GrammarSpec(topics=1), 0), Random(5)
    slots = language.slots(POST, (Item("choice", language.words.topics),))
    (choice,) = (slot for slot in slots if slot.slot == "choice")
    counts = Counter(choice.draw(draw) for _ in range(20_000))
    for word, probability in zip(choice.support, choice.probabilities, strict=True):
        assert counts[word] / 20_000 == pytest.approx(probability, abs=0.015)
    assert choice.entropy == pytest.approx(2.0, abs=1e-9)


def test_shares_of_slots_are_those_of_the_knob():
    shares = dict(zip(SLOTS, (0.5, 0.1, 0.1, 0.2, 0.1), strict=True))
    language, draw = Language(GrammarSpec(shares=shares, items=5), 0), Random(0)
    slots = Counter(slot.slot for _ in range(2000) for slot in language.slots(PRE, language.draw_items(PRE, draw)))
    for slot, share in shares.items():
        assert slots[slot] / slots.total() == pytest.approx(share, abs=0.02)


def test_keys_follow_zipfs_law_in_an_order_of_each_world():
    language, draw = Language(GrammarSpec(zipf=1.0, facts=50), 0), Random(1)
    worlds = language.worlds
    counts = Counter(worlds["post"].draw_key(draw) for _ in range(20_000))
    first, tenth = (counts[worlds["post"].by_rank[rank - 1]] for rank in (1, 10))
    assert first / tenth == pytest.approx(10, rel=0.2)
    assert worlds["pre"].by_rank != worlds["post"].by_rank and worlds["pre"].value_of != worlds["post"].value_of


def test_a_language_depends_on_its_seed_and_is_read_back_from_its_fields():
    one, other = (Language(GrammarSpec(), seed) for seed in (0, 1))
    assert one.worlds["post"].value_of != other.worlds["post"].value_of
    read = Language.from_fields(one.fields)
    assert read.worlds["post"].value_of == one.worlds["post"].value_of
    assert read.worlds["pre"].choices == one.worlds["pre"].choices


@pytest.mark.parametrize(("count", "nats"), [(2, 0.1), (12, 2.0), (12, math.log(12)), (400, 5.5)])
def test_decaying_probabilities_have_the_entropy_that_is_asked_for(count, nats):
    probabilities = decaying_probabilities(count, nats)
    assert entropy(probabilities) == pytest.approx(nats, abs=1e-9) and sum(probabilities) == pytest.approx(1)
    assert probabilities == sorted(probabilities, reverse=True)


def test_words_are_distinct_for_the_largest_language():
    words = Words.of(GrammarSpec(facts=6400, values=6400, choices=400, topics=400, items=12)).vocabulary
    assert len(set(words)) == len(words) > 2 * 6400


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"choices": 4, "choice_entropy": 2.0}, "at most 1.386 nats"),
        ({"shares": {"structure": 1.0}}, "no 'copy'"),
        ({"shares": dict.fromkeys(SLOTS, 0.3)}, "add up to 1.5"),
        ({"shares": dict(zip(SLOTS, (0.05, 0.2, 0.25, 0.25, 0.25), strict=True)), "items": 2}, "less than one token"),
        ({"shares": dict(zip(SLOTS, (1.0, 0.0, 0.0, 0.0, 0.0), strict=True))}, "all structure"),
    ],
)
def test_impossible_knobs_are_refused(knobs, says):
    with pytest.raises(ValidationError, match=says):
        GrammarSpec(**knobs)
