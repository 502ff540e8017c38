"""Long texts: frequencies that follow the longest text of a batch, and positions that end."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, Trainer, TrainingArguments

from tests.support.mixtures import padded
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, VOCAB, tiny_model
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tests.support.tokenizing import examples_of, tokenize, turns
from tests.support.training import MLE, training_setup
from tests.support.zoo import tiny_zoo_model
from tokenuq_ml import TokenObjective, score_tokens
from tokenuq_ml.config import LoraSpec, UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.generation import GreedyDecoding, generate
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.dynamic_rope import shared_length
from tokenuq_ml.models.positions import most_positions
from tokenuq_ml.scoring.bald_reference import float64_uncertainty
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.training.trainer import train

pytestmark = pytest.mark.slow

LIMIT = 16
LENGTHS = (60, 30, 24, 12, 8)
"""Some beyond the limit, some not."""


def dynamic_model(kind: str):
    """Return a tiny model whose frequencies change beyond `LIMIT` tokens."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "initializer_range": 0.3, "pad_token_id": 2, "bos_token_id": 1}
    sizes |= {"eos_token_id": 2}
    if kind == "dynamic":
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
        return LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=LIMIT, rope_parameters=rope)).eval()
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 9.0, 27.0]}
    rope |= {"rope_theta": 100.0, "original_max_position_embeddings": LIMIT}
    config = Phi3Config(
        **sizes, max_position_embeddings=64, original_max_position_embeddings=LIMIT, rope_parameters=rope
    )
    return Phi3ForCausalLM(config).eval()


def texts() -> list[TokenizedExample]:
    draw = torch.Generator().manual_seed(1)
    return [
        TokenizedExample(
            f"toy/{length:03d}",
            "toy",
            "train",
            torch.randint(3, VOCAB, (length,), generator=draw).tolist(),
            [False] * 2 + [True] * (length - 2),
        )
        for length in LENGTHS
    ]


@torch.no_grad()
def plain_losses(kind: str) -> dict[str, torch.Tensor]:
    """Return the losses of each text under a model that has seen no other."""
    losses = {}
    for text in texts():
        ids = torch.tensor(text.input_ids)
        logits = dynamic_model(kind)(ids[None]).logits[0]
        loss_T = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        losses[text.example_id] = loss_T[1:]
    return losses


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_texts_loss_is_the_same_alone_and_next_to_long_texts(kind):
    model, expected = dynamic_model(kind), plain_losses(kind)
    assert shared_length(model) == LIMIT
    # Twice: dynamic frequencies stay those of the longest text before.
    for _ in range(2):
        rows = score_examples(model, texts(), FLOAT32, max_tokens=10_000).sort("example_id", "position")
        for example_id, losses in expected.items():
            ours = rows.filter(example_id=example_id)["loss"].to_torch()
            torch.testing.assert_close(ours, losses, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_bald_is_the_same_alone_next_to_long_texts_and_in_float64(kind):
    model, spec = add_adapter(dynamic_model(kind), LoraSpec(rank=2, alpha=4), 0), UncertaintySpec(samples=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    together = token_uncertainty(model, texts(), spec, FLOAT32, max_tokens=10_000).sort("example_id", "position")
    alone = [token_uncertainty(model, [text], spec, FLOAT32) for text in reversed(texts())]
    assert together["bald"].to_list() == pytest.approx([value for one in alone for value in one["bald"]], rel=1e-3)
    exact = float64_uncertainty(model, texts(), spec).sort("example_id", "position")
    assert together["bald"].to_list() == pytest.approx(exact["bald"].to_list(), rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("batching", ["bucket", "pack"])
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_the_pipeline_trains_one_text_per_pass(kind, batching, tmp_path):
    setup = training_setup(MLE, count=5, epochs=1)
    setup.examples = texts()
    setup.train = setup.train.model_copy(update={"batch_size": 5, "micro_batch_size": None, "batching": batching})
    model, reporter = add_adapter(dynamic_model(kind), LoraSpec(rank=2, alpha=4, dropout=0.0), 0), RecordingReporter()
    recorder = train(model, setup, tmp_path, reporter, "x")
    expected = torch.cat(list(plain_losses(kind).values())).mean()
    assert recorder.log_rows[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert any("one text per forward pass" in line for line in reporter.lines)


def test_short_texts_share_a_pass(tmp_path):
    setup = training_setup(MLE, count=5, epochs=1)
    setup.examples = texts()[3:]
    reporter = RecordingReporter()
    train(add_adapter(dynamic_model("longrope"), LoraSpec(rank=2, alpha=4), 0), setup, tmp_path, reporter, "x")
    assert not any("one text per forward pass" in line for line in reporter.lines)


class _Ours(TokenObjective, Trainer):
    pass


def trainer_of(model, rows, folder):
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True
    )
    return _Ours(model=model, args=arguments, train_dataset=rows, data_collator=padded, ablation=MLE)


def test_a_users_batch_of_several_lengths_is_refused(tmp_path):
    rows = [{"input_ids": list(text.input_ids), "labels": list(text.input_ids)} for text in texts()[1:3]]
    with pytest.raises(InputError, match=r"beyond 16 tokens.*24 to 30 tokens: use batches of one text"):
        trainer_of(dynamic_model("dynamic"), rows, tmp_path).train()
    same = [{name: ids[:20] for name, ids in row.items()} for row in rows]
    trainer_of(dynamic_model("dynamic"), same, tmp_path).train()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_an_answer_is_the_same_alone_and_next_to_a_long_prompt(kind, tmp_path):
    tokenizer, decoding = tiny_tokenizer(), GreedyDecoding(max_new_tokens=6, batch_size=5)
    model, prompts = dynamic_model(kind), [list(text.input_ids) for text in texts()]
    together = generate(model, tokenizer, prompts, decoding)
    assert together == [generate(dynamic_model(kind), tokenizer, [prompt], decoding)[0] for prompt in prompts]


@torch.no_grad()
def test_doge_scores_texts_beyond_its_window_alone():
    """Its dynamic mask keeps the keys that score best in the padded length."""
    model = tiny_zoo_model("doge", vocab_size=VOCAB, keep_window_size=8)
    assert shared_length(model) == 8
    rows = score_examples(model, texts(), FLOAT32, max_tokens=10_000)
    for text in texts():
        ids = torch.tensor([text.input_ids])
        loss_T = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        ours = rows.filter(example_id=text.example_id).sort("position")["loss"].to_torch()
        torch.testing.assert_close(ours, loss_T[1:], rtol=1e-4, atol=1e-4)


def test_block_sparse_attention_is_refused():
    with pytest.raises(InputError, match="BigBird.* attends by blocks .*attention_type. of its config.* original_full"):
        score_examples(tiny_zoo_model("big_bird", attention_type="block_sparse"), texts(), FLOAT32)


@pytest.mark.parametrize("kind", ["rwkv", "mamba", "llama"])
def test_answers_do_not_depend_on_padding(kind):
    """RWKV's state takes in the padding, whatever the mask says; its prompts are padded with others of one length."""
    tokenizer, model = tiny_tokenizer(), tiny_zoo_model(kind)
    prompts = [[3 + (7 * place + length) % 80 for place in range(length)] for length in (11, 7, 7, 4)]
    together = generate(model, tokenizer, prompts, GreedyDecoding(max_new_tokens=5, batch_size=4))
    assert together == [
        generate(model, tokenizer, [prompt], GreedyDecoding(max_new_tokens=5, batch_size=1))[0] for prompt in prompts
    ]


@pytest.mark.parametrize(
    "kind", ["gpt2", "opt", "gpt_neo", "gptj", "codegen", "gpt_bigcode", "biogpt", "mpt", "ctrl", "llama", "bloom"]
)
def test_positions_end_where_the_models_own_forward_pass_fails(kind):
    model = tiny_zoo_model(kind)
    limit = most_positions(json.loads(model.config.to_json_string(use_diff=False)))
    assert (limit is None) == (kind in ("llama", "bloom"))
    ids = torch.full((1, limit or 300), 5)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
        if limit is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, limit + 1), 5), use_cache=False)
            with pytest.raises(InputError, match=rf"a text of the batch has {limit + 1} tokens, and .* {limit} posi"):
                text = TokenizedExample("a", "d", "test", [5] * (limit + 1), [True] * (limit + 1))
                score_examples(model, [text], FLOAT32)


def test_a_text_beyond_the_positions_is_named_by_its_index():
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt2", len(tokenizer))
    with pytest.raises(InputError, match=r"text 1 has [\d,]+ tokens, and gpt2 has 512 positions; pass max_length=512"):
        score_tokens(model, tokenizer, ["a b c", "a b c " * 400])
    assert len(score_tokens(model, tokenizer, ["a b c " * 400], max_length=512)) == 511


def test_a_study_whose_examples_pass_the_last_position_is_refused_at_tokenisation(tmp_path):
    examples = examples_of(
        [turns("How many apples?", "There are twelve apples in the basket. " * n) for n in range(1, 7)]
    )
    config = {"model_type": "gpt2", "n_positions": 64}
    with pytest.raises(InputError, match=r"the longest example has [\d,]+ tokens, and gpt2 has 64 .*max_length: 64"):
        tokenize(tmp_path / "refused", CHATML, examples, config, max_length=512)
    tokenize(tmp_path / "cut", CHATML, examples, config, max_length=64, max_truncated_share=1.0)
    tokenize(tmp_path / "rotary", CHATML, examples, {"model_type": "llama"}, max_length=512)


def test_answers_that_would_pass_the_last_position_are_refused():
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt2", len(tokenizer))
    with pytest.raises(InputError, match=r"prompt 1 with an answer of 20 tokens has 520 tokens, and gpt2 has 512"):
        generate(model, tokenizer, [[5, 6], [5] * 500], GreedyDecoding(max_new_tokens=20, batch_size=2))
