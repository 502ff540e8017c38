"""Reviewed files: what is read, what is refused with file and row, and what becomes of the examples."""

import json

import polars as pl
import pytest

from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.tokenizing import trained_texts, turns
from tokenuq_ml.data.curation import LeftOut, curated, mask_spans, read_review
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.tokenization import ConversationTokenizer
from tokenuq_ml.errors import InputError

HEADER = "example_id,keep,weight,mask,token_spans"


def example(number: int, *texts: str, **fields) -> Example:
    texts = texts or (f"What is {number}?", f"It is {number}.")
    return Example(f"d/{number}", "train", turns(*texts), {"row": number}, **fields)


def csv(tmp_path, *lines: str, header: str = HEADER):
    path = tmp_path / "review.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def applied(path, *examples: Example) -> list:
    return list(curated(examples, read_review(path), "d", "clean"))


def test_decisions_of_a_csv(tmp_path):
    path = csv(tmp_path, "d/1,false,,,", "d/2,TRUE,0.5,,", 'd/3,,,"0..2, 6-7",')
    left_out, weighted, masked, same = applied(path, *map(example, range(1, 5)))
    assert isinstance(left_out, LeftOut) and left_out.example.id == "d/1" and left_out.row == 1
    assert weighted.id == "clean/2" and weighted.turn_weights == [0.0, 0.5]
    assert masked.untrained_spans == [[1, 0, 2], [1, 6, 7]] and masked.turn_weights is None
    assert same.messages == example(4).messages and same.split == "train"
    assert same.source == {"row": 4, "curated_from": "d/4"}


def test_a_parquet_file_with_its_own_types(tmp_path):
    frame = pl.DataFrame({"example_id": ["d/1", "d/2"], "keep": [False, None], "weight": [None, 2.0]})
    frame.write_parquet(tmp_path / "review.parquet")
    left_out, weighted = applied(tmp_path / "review.parquet", example(1), example(2))
    assert isinstance(left_out, LeftOut) and weighted.turn_weights == [0.0, 2.0]


def test_missing_values_of_pandas_are_empty(tmp_path):
    nan = float("nan")
    frame = pl.DataFrame({"example_id": ["d/1", "d/2"], "keep": [0.0, nan], "weight": [nan, nan], "mask": [None, None]})
    frame.write_parquet(tmp_path / "review.parquet")
    left_out, same = applied(tmp_path / "review.parquet", example(1), example(2))
    assert isinstance(left_out, LeftOut) and same.turn_weights is None


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffexample_id,keep\nd/1,no\n",
        "example_id;keep\nd/1;no\n",
        "example_id\tkeep\nd/1\tno\n",
        'answer,example_id,keep\n"two\nlines, and a comma",d/1,0\n',
    ],
    ids=["byte order mark", "semicolons", "tabs", "line breaks"],
)
def test_what_spreadsheets_write(tmp_path, content):
    path = tmp_path / "review.csv"
    path.write_text(content, encoding="utf-8")
    assert [type(item) for item in applied(path, example(1))] == [LeftOut]


def test_weights_multiply_those_of_the_turns(tmp_path):
    path = csv(tmp_path, "d/1,,0.5,,")
    (found,) = applied(path, example(1, "a", "b", "c", "d", turn_weights=[0.0, 0.0, 0.0, 0.4]))
    assert found.turn_weights == pytest.approx([0, 0, 0, 0.2])


def test_columns_that_are_not_read_are_named(tmp_path):
    path = csv(tmp_path, "d/1,,,,,x", header=f"{HEADER},remark")
    assert read_review(path).columns_not_read == ("remark",)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["d/1,,,,", "d/9,false,,,"], "review.csv: row 2 (example d/9): there is no such example in dataset d"),
        (["d/8,,,,", "d/9,,,,"], "row 1 (example d/8): there is no such example in dataset d; 2 rows name unknown"),
        (["d/1,,,,", "d/2,,,,", "d/1,false,,,"], "review.csv: row 3: example d/1 is in row 1 already"),
        ([",false,,,"], "row 1: example_id is empty"),
        (["d/1,maybe,,,"], "row 1 (example d/1): keep is 'maybe'; allowed: true, false, or empty"),
        (["d/1,,heavy,,"], "row 1 (example d/1): weight is 'heavy'; give a number above 0"),
        (["d/1,,0,,"], "set keep to false"),
        (["d/1,,inf,,"], "weight is 'inf'"),
        (
            ["d/2,,,,", "d/1,,,4-90,"],
            "row 2 (example d/1): mask '4-90': 2:4..90 is not inside the text, which has 8 ch",
        ),
        (["d/1,,,5-5,"], "is not inside the text"),
        (["d/1,,,1:0-2,"], "mask '1:0-2': 1:0..2: turn 1 is not trained; trained turns: 2"),
        (["d/1,,,7:0-2,"], "turn 7 is not trained"),
        (["d/1,,,0:0-2,"], "turn 0 is not trained"),
        (["d/1,,,all of it,"], "'all' is not a span; write START..END, TURN:START..END, or tPOSITION"),
        (["d/1,,,t5,"], "t5 is a token position, which needs the column token_spans"),
        (['d/1,,,t5,"[[4,1,0,2]]"'], "t5 is no response token with text"),
        (["d/1,,,t5,[[4"], "the column token_spans was changed"),
    ],
)
def test_errors_name_file_row_and_example(tmp_path, lines, said):
    with pytest.raises(InputError) as error:
        applied(csv(tmp_path, *lines), example(1), example(2))
    assert said in str(error.value) and str(tmp_path / "review.csv") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_span_needs_its_turn_if_several_are_trained(tmp_path):
    path = csv(tmp_path, "d/1,,,0-1,")
    with pytest.raises(InputError, match="0-1 names no turn, and 2 turns are trained; write TURN:0-1"):
        applied(path, example(1, "a", "b", "c", "d"))
    assert mask_spans("4:0-1", example(1, "a", "b", "c", "d")) == [(3, 0, 1)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("example_id\nd/1\n", "needs the column example_id and at least one of keep, weight, mask; it has example_id"),
        ("id,keep\nd/1,false\n", "needs the column example_id"),
        ("", "cannot be read"),
    ],
)
def test_files_that_are_no_reviews(tmp_path, content, said):
    path = tmp_path / "review.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_review(path)


def test_files_in_another_encoding(tmp_path):
    path = tmp_path / "review.csv"
    path.write_bytes("example_id,keep,answer\nd/1,false,é\n".encode("latin-1"))
    with pytest.raises(InputError, match="review.csv"):
        read_review(path)
    (tmp_path / "review.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="review.parquet: cannot be read"):
        read_review(tmp_path / "review.parquet")


def test_token_positions_are_those_of_the_tables():
    spans = json.dumps([[7, 1, 0, 2], [8, 1, 2, 5], [9, 1, 5, 8]])
    assert mask_spans("t7..8; 6-7;", example(1), spans) == [(1, 0, 2), (1, 2, 5), (1, 6, 7)]


# Masked text is not trained.


def texts(tokens) -> list[str]:
    return trained_texts(tiny_tokenizer(), tokens.input_ids, tokens.response_mask)


def test_masked_characters_are_not_trained_and_all_others_are():
    text = "It is 12 apples, 12 in all."
    start = text.index("12 in")
    plain = Example("d/1", "train", turns("How many?", text))
    masked = Example("d/1", "train", turns("How many?", text), untrained_spans=[[1, start, start + 2]])
    before, after = ConversationTokenizer(tiny_tokenizer()).tokenize([plain, masked])
    assert before.input_ids == after.input_ids and not after.faults
    head, tail = texts(after)
    # The space before the number may be part of its token.
    assert head.rstrip() == text[:start].rstrip() and tail == " in all.<|im_end|>"
    assert texts(before) == [f"{text}<|im_end|>"]


def test_the_masked_turn_is_the_one_that_is_named():
    conversation = turns("a?", "same words", "b?", "same words")
    masked = Example("d/1", "train", conversation, untrained_spans=[[3, 0, 10]])
    (found,) = ConversationTokenizer(tiny_tokenizer()).tokenize([masked])
    assert texts(found) == ["same words<|im_end|>", "<|im_end|>"]


def test_masked_examples_survive_the_table():
    masked = Example("d/1", "train", turns("a?", "b"), {}, untrained_spans=[[1, 0, 1]])
    assert Example.from_row(masked.row) == masked
    assert Example.from_row(Example("d/1", "train", turns("a?", "b")).row).untrained_spans is None
