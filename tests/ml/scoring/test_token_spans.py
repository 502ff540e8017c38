"""Where tokens are in the text: several turns, pieces of characters, tokens of the template."""

from tokenuq_ml.scoring.token_spans import TokenSpan, locate_tokens, marked, merged


def test_tokens_are_located_turn_by_turn():
    tokens = [(5, "Yes"), (6, "."), (7, "<end>"), (12, "No"), (13, " way"), (14, "<end>")]
    found = locate_tokens(tokens, [(1, "Yes."), (3, "No way")])
    assert found == [TokenSpan(5, 1, 0, 3), TokenSpan(6, 1, 3, 4), TokenSpan(12, 3, 0, 2), TokenSpan(13, 3, 2, 6)]


def test_pieces_of_a_character_share_its_place():
    tokens = [(1, "a"), (2, "\ufffd"), (3, "\ufffd"), (4, "b")]
    assert [span[2:] for span in locate_tokens(tokens, [(1, "a🙂b")])] == [(0, 1), (1, 2), (1, 2), (2, 3)]
    assert locate_tokens([(1, "a"), (2, "\ufffd")], [(1, "a🙂")])[-1] == TokenSpan(2, 1, 1, 2)


def test_white_space_that_the_template_strips_is_skipped():
    assert locate_tokens([(1, "Yes"), (2, " it")], [(1, "  Yes it ")]) == [TokenSpan(1, 1, 2, 5), TokenSpan(2, 1, 5, 8)]


def test_a_repeated_word_is_located_where_it_is():
    tokens = [(1, "no"), (2, " no"), (3, " no")]
    assert [span.start for span in locate_tokens(tokens, [(1, "no no no")])] == [0, 2, 5]


def test_adjacent_spans_are_joined_and_marked():
    spans = [TokenSpan(4, 1, 5, 7), TokenSpan(1, 1, 0, 2), TokenSpan(2, 1, 2, 4), TokenSpan(9, 3, 0, 2)]
    assert merged(spans) == [(1, 0, 4), (1, 5, 7), (3, 0, 2)]
    assert marked("abcd efg", 1, merged(spans)) == "⟦abcd⟧ ⟦ef⟧g"
    assert marked("xyz", 3, merged(spans)) == "⟦xy⟧z"
