"""Documents of a language: reproducible, distinct, and of the right world."""

import json
import math
from collections import Counter

import pytest

from tests.support.tiny_language import language_spec, post_spec
from tokenuq_ml.config.language import LanguageChanges
from tokenuq_ml.data.language.documents import Document, generate_documents, language_of
from tokenuq_ml.data.language.grammar import Form, Item, Language
from tokenuq_ml.data.load import first_conversations, load_examples
from tokenuq_ml.errors import InputError


def test_documents_are_the_same_each_time_and_have_distinct_prompts():
    one, other = (load_examples(language_spec()) for _ in range(2))
    assert one.examples == other.examples
    prompts = [example.question for example in one.examples]
    assert len(set(prompts)) == len(prompts) == one.metrics["rows_train"] + one.metrics["rows_ood"] == 46
    assert one.metrics["words"] == len(language_of(language_spec()).words.vocabulary)


def test_a_share_of_the_pretraining_documents_is_shuffled_and_of_the_other_world():
    examples = load_examples(language_spec(train=400, ood=50, facts=60)).examples
    forms = [(example.split, Document.of(example).form) for example in examples]
    shuffled = [form for split, form in forms if form.shuffled]
    assert {form.world for form in shuffled} == {"post"} and 70 < len(shuffled) < 130
    assert all(form.world == "pre" for split, form in forms if split == "ood" or not form.shuffled)


def test_a_world_of_its_own_entry_is_never_shuffled():
    examples, _ = generate_documents(post_spec(), language_of(language_spec()))
    assert {Document.of(example).form.world for example in examples} == {"post"}
    assert not any(Document.of(example).form.shuffled for example in examples)
    assert {example.split for example in examples} == {"train", "validation", "test"}


def test_other_knobs_of_one_seed_are_another_language():
    one, other = (load_examples(language_spec(noise=noise)).examples for noise in (0.0, 0.5))
    assert one[0].source["language"] != other[0].source["language"]


def test_a_dataset_with_other_noise_and_rarity_has_the_words_and_facts_of_its_language():
    language, spec = language_of(language_spec(facts=60)), post_spec(train=200)
    made = {}
    for noise, zipf in ((0.0, 0.0), (0.5, 4.0)):
        changed = spec.model_copy(update={"changes": LanguageChanges(noise=noise, zipf=zipf)})
        documents = [Document.of(example) for example in generate_documents(changed, language)[0]]
        # What `source` records is what the truth is computed from.
        (fields,) = {json.dumps(document.language) for document in documents}
        written = Language.from_fields(json.loads(fields))
        assert (written.grammar.noise, written.grammar.zipf) == (noise, zipf)
        assert written.words == language.words
        assert written.worlds["post"].value_of == language.worlds["post"].value_of
        keys = [item.arguments[0] for document in documents for item in document.items if item.slot == "fact"]
        fact = written.slots(Form("post"), [Item("fact", (keys[0],))])[-2]
        value = language.worlds["post"].value_of[keys[0]]
        assert math.exp(-fact.loss(value)) == pytest.approx(1 - noise + noise / len(language.words.values))
        made[zipf] = Counter(keys).most_common(1)[0][1] / len(keys)
    assert made[0.0] < 0.1 and made[4.0] > 0.8


def test_the_first_conversations_are_known_only_of_the_entry_that_defines_the_language():
    assert len(first_conversations(language_spec(), "ood", 3)) == 3
    assert first_conversations(post_spec(), "train", 3) == []
    with pytest.raises(InputError, match="written in the language of talk"):
        load_examples(post_spec())


def test_too_few_distinct_prompts_are_said_in_a_sentence():
    shares = {"structure": 0.5, "copy": 0.0, "computation": 0.0, "fact": 0.5, "choice": 0.0}
    spec = language_spec(train=50, items=1, facts=2, shares=shares)
    with pytest.raises(InputError, match="dataset talk: of 1,000 prompts in a row none was new"):
        load_examples(spec)
