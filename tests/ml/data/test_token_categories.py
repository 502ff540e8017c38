"""Token categories: their written rules on at least thirty strings each, and the state between tokens."""

import pytest

from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.data.token_categories import CATEGORIES, categorise, special_ids, token_texts
from tokenuq_ml.tables.schemas import TABLES

# fmt: off
# Each string is a token by itself, with nothing before it.
ALONE = {
    "whitespace": [
        " ", "  ", "   ", "    ", "        ", "\n", "\n\n", "\n\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ",
        "\n  ", "\n\t", "\t\n", " \t ", "\n\n  ", "\x0b", "\x0c", "\u00a0", "\u2003", "\u2009", "\u202f", "\u3000",
        "\u2028", "\u2029", "\u0085", " \u00a0", "\n    ", "\r\n\r\n",
    ],
    "number": [
        "0", "1", "42", " 12", "\n7", "3,000", "3.14", ".5", "-7", "+3", "1/2", "½", "¼", "²", "₂", "٣", " ٣٤", "४२",
        "１２", "Ⅷ", "①", "$5", "£28080", "50%", "(3", "12)", "=36", "1.", "#3", "10:30", "2024", " 1,234.5", "×4",
        "####7",
    ],
    "punctuation": [
        ".", ",", "!", "?", ":", ";", "-", "—", "…", "(", ")", "[", "]", "{", "}", "%", "$", " $", "£", "€", "×", "÷",
        "=", " =", "+", "<", ">", "#", "####", "*", "**", "_", "/", "\\", "|", "~", "`", "``", "'", "’", '"', "“",
        "。", "、", "«", "→", "✓", "🍎", "👍🏽", ".\n\n", ":\n", "...", " --", "\u200b", "\ufffd", " \ufffd", "\u0301",
        "",
    ],
    "word": [
        "a", "I", "the", " the", " The", "\nSo", "\n\nThen", "word ", "WORD", "camelCase", "é", " élan", "naïve",
        "Ωmega", "привет", "كتاب", "हिन्दी", "中", "三", "日本", "한국", "x2", "2nd", " 3D", "2x", "don't", "'s", "’t",
        "(see", '"Hello', "-based", "e.g", ".append", "#include", "@user", "_name", "$x",
    ],
}
# A token, right after another that leaves a word open.
AFTER = {
    "subword": [
        ("work", "ing"), (" work", "s"), ("un", "believ"), ("believ", "able"), ("S", "mol"), ("L", "M"), ("é", "lan"),
        ("na", "ïve"), ("farmer", "'s"), ("don", "'t"), ("we", "’re"), ("I", "'m"), ("中", "国"), ("日本", "語"),
        ("при", "вет"), ("हि", "न्दी"), ("क", "ा"), ("e", "\u0301"), ("caf", "\ufffd"), ("\ufffdb", "\ufffd"),
        ("x2", "y"), ("2nd", "ary"), ("x", "2y"), ("(see", "n"), (".app", "end"), ('"Hel', "lo"), ("tok", "ens "),
        ("tok", "en\n"), ("any", "thing."), ("l", "'a"), ("Ω", "mega"), ("A", "B"), ("'s", "o"),
    ],
    "word": [
        ("work", " ing"), ("work", "\ning"), ("work ", "ing"), ("word.", "Next"), (".", "com"), ("-", "based"),
        ("3", "rd"), ("12", "th"), ("½", "a"), ("(", "see"), ("'", "tis"), ("\n", "So"), (" ", "a"), ("%", "off"),
        ("well", "-known"), ("🍎", "pie"), ("\u0301", "a"), ("tok\n", "en"),
    ],
    "number": [("x", "2"), ("route", " 66"), ("a", "½"), ("CO", "₂"), ("word", ".5")],
    "punctuation": [
        ("word", "."), ("3", "%"), ("word", "'"), ("word", "-"), ("3", "\ufffd"), (".", "\ufffd"),
        ("word ", "\ufffd"), ("word", " \ufffd"), ("word", ""), ("word", "🍎"),
    ],
    "whitespace": [("word", " "), ("word", "\n\n"), ("3", "\t")],
}
# Each string is a token inside an open fence.
CODE = [
    "python", "\n", "def", " f", "(", "x", "):", "\n    ", "return", " 1", "2", ".5", " +", "'s", "ing", "# words",
    "\t", "\ufffd", "中", "½", "`", "``", "$", "{", "}", ";", " ", "\n\n", "<html>", "SELECT", " *", "==", "",
]
# fmt: on


def one(text: str, *before: str) -> str:
    return categorise([*before, text], [False] * (len(before) + 1))[-1]


def words(texts: list[str]) -> list[str]:
    return categorise(texts, [False] * len(texts))


@pytest.mark.parametrize(("category", "text"), [(c, t) for c, texts in ALONE.items() for t in texts])
def test_a_token_by_itself(category, text):
    assert one(text) == category


@pytest.mark.parametrize(("category", "before", "text"), [(c, *pair) for c, pairs in AFTER.items() for pair in pairs])
def test_a_token_after_another(category, before, text):
    assert one(text, before) == category


@pytest.mark.parametrize("text", CODE)
def test_a_token_inside_a_fence(text):
    # A lone backtick between two words: by itself it must not close the fence.
    assert words(["```", "py", text, " end"])[1:] == ["code"] * 3


@pytest.mark.parametrize("text", [t for texts in ALONE.values() for t in texts] + CODE)
def test_a_special_token_is_special_whatever_its_text(text):
    assert categorise(["```", text, text], [False, True, False])[1] == "special"
    assert categorise(["word", text], [False, True])[1] == "special"


def test_thirty_strings_a_category_and_the_categories_of_the_table():
    strings = {name: {*ALONE.get(name, []), *AFTER.get(name, [])} for name in CATEGORIES}
    assert all(len(texts) >= 30 for name, texts in strings.items() if name not in ("special", "code"))
    assert len(CODE) >= 30
    described = TABLES["token_losses"].columns["category"][1]
    assert sorted(described.replace(" or ", ", ").split(", ")) == sorted(CATEGORIES)


def test_fences_open_and_close():
    assert words(["Use", "```", "py", "\nx", "\n", "```", "\n", "Done"]) == [
        "word",
        "code",
        "code",
        "code",
        "code",
        "code",
        "whitespace",
        "word",
    ]
    assert words(["a", "\n```", "b", "```\n", "c", "```x```", "d"]) == [
        "word",
        "code",
        "code",
        "code",
        "word",
        "code",
        "word",
    ]
    assert words(["a", "````", "b", "````", "c"]) == ["word", "code", "code", "code", "word"]


def test_a_fence_split_over_tokens():
    assert words(["a", "`", "``", "b", "``", "`", "c"]) == ["word", *["code"] * 5, "word"]
    assert words(["`", "`", "`", "b"]) == ["code"] * 4
    # Not in a row: no fence, and the earlier backtick is no part of one.
    assert words(["` ", "``", "b"]) == ["punctuation", "punctuation", "word"]
    assert words(["`", " ", "```", "b"]) == ["punctuation", "whitespace", "code", "code"]
    assert words(["`", "a", "`"]) == ["punctuation", "word", "punctuation"]


def test_a_special_token_between_backticks_breaks_the_fence():
    assert categorise(["``", "<end>", "`", "a"], [False, True, False, False]) == [
        "punctuation",
        "special",
        "punctuation",
        "word",
    ]


def test_an_open_fence_stays_open_over_the_end_of_a_turn():
    assert categorise(["```", "x", "<end>", "more"], [False, False, True, False]) == ["code", "code", "special", "code"]


def test_a_special_token_ends_a_word():
    assert categorise(["work", "<end>", "ing"], [False, True, False]) == ["word", "special", "word"]


def test_a_sentence():
    texts = [
        "She",
        " pays",
        " $",
        "3",
        ",",
        "000",
        " for",
        " the",
        " farm",
        "er",
        "'s",
        " apples",
        ".\n",
        "####",
        " 42",
    ]
    assert words(texts) == [
        "word",
        "word",
        "punctuation",
        "number",
        "punctuation",
        "number",
        "word",
        "word",
        "word",
        "subword",
        "subword",
        "word",
        "punctuation",
        "punctuation",
        "number",
    ]


def test_lengths_must_agree():
    with pytest.raises(ValueError):
        categorise(["a"], [])


def test_texts_of_tokens_keep_spaces_and_give_back_the_text():
    tokenizer = tiny_tokenizer()
    text = "The farmer  sells , 12 apples .\n\n it 's"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert "".join(texts) == text and any(t.startswith(" ") and len(t) > 1 for t in texts)
    pieces = token_texts(tokenizer, tokenizer("🍎", add_special_tokens=False)["input_ids"])
    assert len(pieces) > 1 and set(pieces) == {"\ufffd"}


def test_texts_of_sentencepiece_tokens_keep_their_space(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁the": 0, "▁farm": 1, "er": 2, "▁": 3, "<unk>": 4}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert token_texts(tokenizer, [0, 1, 2, 3]) == [" the", " farm", "er", " "]


def test_special_ids_hold_named_and_added_ones():
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("apples", special=False)])
    turn, plain = tokenizer.convert_tokens_to_ids(["<turn>", "apples"])
    assert special_ids(tokenizer) == sorted({*tokenizer.all_special_ids, turn})
    assert plain not in special_ids(tokenizer) and tokenizer.eos_token_id in special_ids(tokenizer)
