"""The vocabulary of a GGUF file: kinds of BPE, how text is split, and what has no name in llama.cpp."""

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from tests.support.exported import held_out
from tests.support.tiny_tokenizer import SENTENCES, tiny_tokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.export.gguf_vocabulary import add_vocabulary, vocabulary_of
from tokenuq_ml.export.model_folder import require_same_ids

LLAMA3 = GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]


def byte_level(*before, use_regex=True, **model):
    """A byte-level tokenizer that splits text in a way of its own."""
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    for key, value in model.items():
        setattr(backend.model, key, value)
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer, name",
    [
        (lambda: byte_level(), "gpt-2"),
        (lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)), "smollm"),
        (lambda: byte_level(split(LLAMA3), use_regex=False, ignore_merges=True), "llama-bpe"),
        (lambda: byte_level(split(LLAMA3), use_regex=False), "dbrx"),
        (lambda: byte_level(split(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), use_regex=False), "qwen2"),
    ],
    ids=["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2"],
)
def test_the_split_has_llama_cpps_name(tokenizer, name):
    found = vocabulary_of(tokenizer(), 360)
    assert (found.model, found.pre) == ("gpt2", name)
    assert found.tokens[:2] == ["<|im_start|>", "<|im_end|>"] and found.types[:2] == [gguf.TokenType.CONTROL] * 2
    assert found.tokens[359] == "[PAD359]" and found.types[359] == gguf.TokenType.UNUSED
    assert "Ġ t" in found.merges or "a p" in found.merges


def split(expression):
    return pre_tokenizers.Split(Regex(expression), behavior="isolated")


@pytest.mark.parametrize(
    "tokenizer, named",
    [
        (lambda: byte_level(pre_tokenizers.Digits(individual_digits=False)), "no name is known for how"),
        (lambda: byte_level(split("[a-z]+"), use_regex=False), r"\[a-z\]\+"),
        (lambda: of_model(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")), "kind WordLevel"),
        (lambda: of_model(models.Unigram([("a", 0.0), ("b", -1.0)])), "kind Unigram"),
        (lambda: of_model(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>")), "end_of_word_suffix"),
        (lambda: of_model(models.BPE({"a": 0}, [])), "neither bytes nor SentencePiece"),
    ],
)
def test_what_has_no_name_is_refused(tokenizer, named):
    with pytest.raises(InputError, match=named):
        vocabulary_of(tokenizer(), 360)


def of_model(model):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(InputError, match="has the id 349, and the model's embedding only 300 rows"):
        vocabulary_of(tiny_tokenizer(), 300)


def sentencepiece():
    """A SentencePiece BPE as Llama 2 has it: bytes as a fallback, and spaces as marks."""
    specials = ["<unk>", "<s>", "</s>"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.normalizer = marks
    trained.train_from_iterator(
        SENTENCES * 3, trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=tokens)
    )
    backend = Tokenizer(_with_all_merges(trained))
    backend.normalizer, backend.decoder = marks, decoders.ByteFallback()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _with_all_merges(trained):
    """Give a vocabulary every merge that it allows, in the order of its tokens, as conversions of SentencePiece do."""
    vocabulary = trained.get_vocab()
    merges = []
    for token, _ in sorted(vocabulary.items(), key=lambda item: item[1]):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        merges += [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary and token[:3] != "<0x"]
    return models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)


def test_sentencepiece_has_scores_by_which_transformers_gives_the_same_ids(tmp_path):
    tokenizer = sentencepiece()
    found = vocabulary_of(tokenizer, len(tokenizer))
    assert found.model == "llama" and found.space_prefix is True and found.merges is None
    assert found.types[:4] == [
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.CONTROL,
        gguf.TokenType.BYTE,
    ]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    add_vocabulary(writer, tokenizer, len(tokenizer), None)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in (*SENTENCES, "The farmer sells ✓ apples."):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert read(text, add_special_tokens=False)["input_ids"] == ids and len(ids) < len(text)


def test_merges_out_of_the_order_of_scores_are_refused():
    tokenizer = of_model(
        models.BPE(
            {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5},
            [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")],
            byte_fallback=True,
        )
    )
    with pytest.raises(InputError, match="not in an order of scores .at 'abc'"):
        vocabulary_of(tokenizer, 6)


def test_other_ids_are_named_with_the_text():
    other = byte_level(pre_tokenizers.Digits(individual_digits=True))
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="here: its tokenizer gives other ids than the study's, first near '.*How"):
        require_same_ids(other, tiny_tokenizer(), held_out(), "here")
