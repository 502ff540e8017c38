"""Borders of prompt and answer, and special tokens as text, under tokenizers of several families."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenuq_ml.data.chat_template import Span
from tokenuq_ml.data.encoding import Text, TextEncoder
from tokenuq_ml.errors import InputError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
WORDS = ["<s>", "</s>", "<unk>", "▁", "▁Answer", ":", "▁yes", "yes", "no", "▁no", "\n", "a", "b", "<", ">", "/", "s"]


def byte_level() -> PreTrainedTokenizerFast:
    """Like GPT-2's: two line breaks are one token, unless a text follows."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "</s>", *alphabet, "ĊĊ", "Ġy"]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [("Ċ", "Ċ"), ("Ġ", "y")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def metaspace(scheme: str, control: bool = True) -> PreTrainedTokenizerFast:
    """Like SentencePiece's: a space is part of the word after it, and a text begins with one.

    `control`: special tokens are pieces of the model too.
    """
    words = WORDS if control else WORDS[2:]
    backend = Tokenizer(models.Unigram([(word, -1.0 - len(word) / 100) for word in words], unk_id=words.index("<unk>")))
    if scheme == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **SPECIAL)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("answer", ["yes", "7", "\nno"])
@pytest.mark.parametrize("header", ["Answer:\n\n", "Answer:  ", "Answer: ", "Answer:"])
def test_byte_level_prompts_are_a_prefix(header, answer):
    tokenizer = byte_level()
    text = f"<s>{header}{answer}</s>"
    (encoded,) = TextEncoder(tokenizer).encode([Text(text, [len(header) + 3])])
    prompt = ids(tokenizer, f"<s>{header}")
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.offsets[len(prompt)][0] == len(header) + 3 and tokenizer.decode(encoded.ids) == text


def test_a_prompt_whose_tokens_change_without_crossing_the_border_is_cut_too():
    """Two line breaks are two tokens before a text and one at the end: no token crosses, and the ids differ."""
    tokenizer = byte_level()
    whole = ids(tokenizer, "<s>a\n\n7")
    assert whole[:-1] != ids(tokenizer, "<s>a\n\n")
    (encoded,) = TextEncoder(tokenizer).encode([Text("<s>a\n\n7", [6])])
    assert encoded.ids == [*ids(tokenizer, "<s>a\n\n"), *ids(tokenizer, "7")]


@pytest.mark.parametrize("scheme", ["first", "never"])
def test_a_piece_in_the_middle_gets_no_space_of_a_beginning(scheme):
    tokenizer = metaspace(scheme)
    (encoded,) = TextEncoder(tokenizer).encode([Text("<s>Answer: yes</s>", [11])])
    prompt = ids(tokenizer, "<s>Answer: ")
    assert encoded.ids == [*prompt, WORDS.index("yes"), 1]
    assert ids(tokenizer, "<s>Answer: yes</s>") != encoded.ids, "the case shows nothing"


def test_a_tokenizer_that_cannot_encode_a_piece_is_refused():
    """The space of a beginning would be trained."""
    (error,) = TextEncoder(metaspace("legacy")).encode([Text("<s>Answer: yes</s>", [11])])
    assert isinstance(error, InputError) and "no space before an answer" in str(error)
    (clean,) = TextEncoder(metaspace("legacy")).encode([Text("<s>Answer: yes</s>", [10])])
    assert clean.ids == ids(metaspace("legacy"), "<s>Answer: yes</s>")


@pytest.mark.parametrize("tokenizer", [byte_level(), metaspace("first", False)], ids=["byte_level", "metaspace"])
def test_only_literal_parts_lose_their_special_tokens(tokenizer):
    text = "<s>Answer: a</s>b</s>"
    (encoded,) = TextEncoder(tokenizer).encode([Text(text, [], [Span(12, 16)])])
    special = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    assert [i for i in encoded.ids if i in special] == special
    assert tokenizer.decode(encoded.ids) == tokenizer.decode(ids(tokenizer, text))
    assert [offset[0] for offset in encoded.offsets] == sorted(offset[0] for offset in encoded.offsets)
    assert encoded.offsets[-1] == (17, 21)


def test_a_tokenizer_without_another_way_to_write_a_special_token_is_refused():
    (error,) = TextEncoder(metaspace("first")).encode([Text("<s>a</s>", [], [Span(4, 8)])])
    assert isinstance(error, InputError) and "special_tokens_in_text: keep" in str(error)


def test_stored_truncation_and_padding_do_not_apply():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=20)
    (encoded,) = TextEncoder(tokenizer).encode([Text("<s>abcdef")])
    assert len(encoded.ids) == 7
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 3 and tokenizer.backend_tokenizer.padding
