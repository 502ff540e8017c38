"""`score_tokens` and `measure_bald` on plain texts and conversations."""

import pytest
import torch

from tests.support.tiny_models import tiny_model, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml import measure_bald, score_tokens
from tokenuq_ml.errors import InputError

TEXTS = ["The farmer has 12 apples.", "sells 5 of them, every week", "#### 42"]
CHAT = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "The total is 36."}]


def model_of(kind="llama", peft=False):
    return tiny_peft(kind, vocab=400) if peft else tiny_model(kind, vocab=400)


def test_scores_equal_those_of_a_plain_forward_pass():
    model, tokenizer = model_of(), tiny_tokenizer()
    table = score_tokens(model.train(), tokenizer, TEXTS)
    assert model.training
    model.eval()
    for index, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        rows = table.filter(text=index)
        assert rows["position"].to_list() == list(range(1, len(ids))) and rows["token_id"].to_list() == ids[1:]
        assert "".join(rows["token"]) == tokenizer.decode(ids[1:])
        logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        label_logp = logp.gather(1, torch.tensor(ids[1:])[:, None])
        torch.testing.assert_close(torch.tensor(rows["loss"]), -label_logp[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.tensor(rows["entropy"]), -(logp.exp() * logp).sum(1), rtol=1e-4, atol=1e-4)
        assert rows["rank"].to_list() == (logp > label_logp).sum(1).tolist()


def test_only_the_assistant_turns_of_a_conversation_are_scored():
    tokenizer = tiny_tokenizer()
    table = score_tokens(model_of(), tokenizer, [CHAT])
    assert "".join(table["token"]) == "The total is 36.<|im_end|>"


def test_bald_has_the_rows_of_the_scores_whatever_the_batches():
    model, tokenizer = model_of(peft=True), tiny_tokenizer()
    table = measure_bald(model, tokenizer, TEXTS, samples=4, dropout=0.3)
    keys = ["text", "position", "token_id", "token"]
    assert table.select(keys).equals(score_tokens(model, tokenizer, TEXTS).select(keys))
    assert table["bald"].max() > 1e-4 and table["n_samples"].unique().to_list() == [4]
    alone = measure_bald(model, tokenizer, TEXTS, samples=4, dropout=0.3, max_tokens=1)
    assert (table["bald"] - alone["bald"]).abs().max() < 1e-5
    fresh = measure_bald(model, tokenizer, TEXTS, samples=4, dropout=0.3, mask="position", seed=1)
    assert not fresh["bald"].equals(table["bald"])


def test_texts_without_a_token_to_score_are_rejected():
    with pytest.raises(InputError, match="no text has a token to score"):
        score_tokens(model_of(), tiny_tokenizer(), ["", "a"])
    with pytest.raises(InputError, match="text 1: .*chat template"):
        score_tokens(model_of(), tiny_tokenizer(chat_template=None), ["two tokens", CHAT])


def test_a_model_without_an_adapter_is_sampled_at_its_own_dropout_or_rejected():
    with pytest.raises(InputError, match="samples the model's own dropout, and LlamaForCausalLM has none, so it would"):
        measure_bald(model_of(), tiny_tokenizer(), TEXTS)
    assert measure_bald(model_of(), tiny_tokenizer(), TEXTS, samples=2, attention_dropout=0.1)["bald"].max() > 0
