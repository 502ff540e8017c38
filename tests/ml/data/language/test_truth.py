"""The rows of `token_truth`, and whose tokens and texts are refused."""

import math

import pytest

from tests.support.tiny_language import language_spec
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.language.documents import Document, generate_documents, language_of
from tokenuq_ml.data.language.tokenizer import word_tokenizer
from tokenuq_ml.data.language.truth import TruthRows
from tokenuq_ml.data.template_probe import probe_template
from tokenuq_ml.data.tokenization import ConversationTokenizer
from tokenuq_ml.errors import InputError

SPEC = language_spec(noise=0.25)
LANGUAGE = language_of(SPEC)
TOKENIZER = word_tokenizer(LANGUAGE.words)
EXAMPLES = generate_documents(SPEC, LANGUAGE)[0]


def tokens(example):
    return ConversationTokenizer(TOKENIZER).tokenize([example])[0]


def rows(example, tokenizer=TOKENIZER):
    found = tokens(example)
    return list(TruthRows(tokenizer, "m").of(example, found.input_ids, found.response_mask))


def test_each_response_token_has_the_distribution_that_drew_it():
    for example in EXAMPLES:
        found, document = tokens(example), Document.of(example)
        expected = LANGUAGE.slots(document.form, document.items)
        made = rows(example)
        assert [row["position"] for row in made] == [n for n, trained in enumerate(found.response_mask) if trained]
        for row, slot in zip(made, expected, strict=True):
            token = found.input_ids[row["position"]]
            words = TOKENIZER.convert_ids_to_tokens(row["support"])
            assert row["support"] == sorted(row["support"]) and set(words) == set(slot.support)
            by_word = dict(zip(slot.support, zip(slot.probabilities, slot.clean, strict=True), strict=True))
            pairs = list(zip(row["probabilities"], row["clean_probabilities"], strict=True))
            assert pairs == [by_word[word] for word in words]
            assert row["true_loss"] == -math.log(row["probabilities"][row["support"].index(token)])
            entropy = -sum(p * math.log(p) for p in row["probabilities"])
            assert row["slot"] == slot.slot and row["true_entropy"] == pytest.approx(entropy, abs=1e-12)


def test_tokens_beyond_a_cut_or_that_are_not_trained_have_no_row():
    example = EXAMPLES[0]
    found, every = tokens(example), rows(example)
    cut = every[2]["position"] + 1
    truth = TruthRows(TOKENIZER, "m")
    assert list(truth.of(example, found.input_ids[:cut], found.response_mask[:cut])) == every[:3]
    masked = list(found.response_mask)
    masked[every[1]["position"]] = False
    assert list(truth.of(example, found.input_ids, masked)) == [every[0], *every[2:]]


def test_the_template_trains_what_it_generates():
    report = probe_template(TOKENIZER)
    assert report.end_of_turn == TOKENIZER.eos_token_id
    assert not [note for note in report.notes if "<unk>" in note]


def test_other_examples_have_no_truth():
    assert list(TruthRows(TOKENIZER, "m").of(Example("d/0", "test", [], {"origin": 1}), [], [])) == []


def test_another_tokenizer_is_refused():
    with pytest.raises(InputError, match="not single tokens of the model m; name a model with `source: pretrain`"):
        rows(EXAMPLES[0], tiny_tokenizer())


def test_the_tokenizer_of_another_language_is_refused():
    other = language_spec(facts=13)
    with pytest.raises(InputError, match="not single tokens of the model m"):
        rows(EXAMPLES[0], word_tokenizer(language_of(other).words))


def test_a_changed_text_is_refused():
    example = next(one for one in EXAMPLES if one.split == "ood")
    changed = Example(
        example.id, example.split, [example.messages[0], {"role": "assistant", "content": "means"}], example.source
    )
    with pytest.raises(InputError, match="its text is not what its language says"):
        rows(changed)
