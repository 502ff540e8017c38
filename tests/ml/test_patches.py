"""Patches of other packages: each restores what it changed, also after an error."""

import logging
import random
import sys

import langdetect
import pytest
import torch
from torch import nn

from tokenuq_ml import patches


class Boom(Exception):
    pass


@pytest.fixture
def nltk():
    """NLTK, imported here because it loads scikit-learn, which most test processes do not need."""
    import nltk.tokenize

    return nltk


def test_an_attribute_is_restored_after_an_error(nltk):
    with pytest.raises(Boom), patches.replaced_attribute(nltk.data, "find", None):
        assert nltk.data.find is None
        raise Boom
    assert callable(nltk.data.find)


def test_alpaca_eval_finds_a_version_and_leaves_no_stand_in(monkeypatch):
    monkeypatch.delitem(sys.modules, "pkg_resources", raising=False)
    root = logging.getLogger()
    monkeypatch.setattr(patches.importlib.util, "find_spec", lambda name: None)
    level = root.level
    with pytest.raises(Boom), patches.importable_alpaca_eval():
        assert sys.modules["pkg_resources"].get_distribution("alpaca_eval").version
        root.setLevel(logging.DEBUG)
        raise Boom
    assert "pkg_resources" not in sys.modules and root.level == level


def test_installed_pkg_resources_are_used(monkeypatch, nltk):
    monkeypatch.setitem(sys.modules, "pkg_resources", nltk)
    with patches.importable_alpaca_eval():
        assert sys.modules["pkg_resources"] is nltk
    assert sys.modules["pkg_resources"] is nltk


def test_a_search_for_nltk_data_succeeds_inside_only(nltk):
    with patches.importable_ifeval():
        nltk.data.find("tokenizers/no_such_tokenizer")
    with pytest.raises(LookupError):
        nltk.data.find("tokenizers/no_such_tokenizer")


def test_ifeval_checkers_split_sentences_with_the_given_tokenizer(nltk):
    with patches.importable_ifeval():
        from lm_eval.tasks.ifeval import instructions_util

    class Halves:
        def tokenize(self, text):
            return [text[: len(text) // 2], text[len(text) // 2 :]]

    before = nltk.tokenize.sent_tokenize, instructions_util._get_sentence_tokenizer, langdetect.DetectorFactory.seed
    state = random.getstate()
    with pytest.raises(Boom), patches.offline_ifeval(Halves()):
        random.random()
        assert nltk.tokenize.sent_tokenize("abcd") == ["ab", "cd"]
        assert instructions_util.count_sentences("abcd") == 2
        assert langdetect.DetectorFactory.seed == 0
        raise Boom
    after = nltk.tokenize.sent_tokenize, instructions_util._get_sentence_tokenizer, langdetect.DetectorFactory.seed
    assert after == before and random.getstate() == state


def test_a_gguf_file_is_parsed_once(monkeypatch):
    import gguf

    parsed = []
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: parsed.append(path) or object())
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with patches.parsed_once_gguf():
        assert gguf.GGUFReader("a") is gguf.GGUFReader("a")
    assert parsed == ["a"] and (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_one_module_gets_another_forward_pass():
    one, other, x = nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 2)
    expected = one(x)
    with pytest.raises(Boom), patches.replaced_forward(one, lambda self, x: x + self.in_features):
        assert torch.equal(one(x), x + 2) and not torch.equal(other(x), x + 2)
        raise Boom
    assert torch.equal(one(x), expected) and "forward" not in vars(one)


def test_a_changed_class_keeps_weights_and_hooks():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    expected, weight = layer(x), layer.weight
    patches.change_class(layer, Doubled)
    assert torch.equal(layer(x), 2 * expected) and layer.weight is weight
