"""The decoding loop gives transformers' answers, computes only rows that go on, and is left where it would not."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.generation_prompts import TOKENIZER, prompts
from tests.support.tiny_models import VOCAB, tiny_model, tiny_peft
from tests.support.zoo import tiny_zoo_model
from tokenuq_ml.evaluation import decode_loop, generation
from tokenuq_ml.evaluation.generation import GreedyDecoding, generate
from tokenuq_ml.models import fast_decoding
from tokenuq_ml.models.row_cache import RowCache

NEW = 8
DECODING = GreedyDecoding(NEW, 16)
IN_PLACE = ["llama", "qwen3", "gemma", "gpt2", "mixtral"]
BY_TRANSFORMERS = ["gemma3_text", "mamba"]
"""Windows and states."""


def model_of(kind: str, dtype: torch.dtype = torch.float32):
    model = tiny_zoo_model(kind)
    model.config.sliding_window = None
    return model.to(dtype).eval()


def by_transformers(model, monkeypatch, asked=None, decoding: GreedyDecoding = DECODING) -> list[list[int]]:
    with monkeypatch.context() as patch:
        patch.setattr(RowCache, "of", lambda model: None)
        return generate(model, TOKENIZER, asked or prompts(), decoding)


@pytest.fixture
def loops(monkeypatch):
    """The number of prompts of each batch that the loop decodes."""
    made, real = [], generation.decode
    monkeypatch.setattr(generation, "decode", lambda start, *rest: made.append(len(rest[0])) or real(start, *rest))
    return made


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, torch.float32) for kind in IN_PLACE] + [("llama", torch.bfloat16)],
)
def test_answers_are_transformers_own(kind, dtype, loops, monkeypatch):
    model = model_of(kind, dtype)
    expected = by_transformers(model, monkeypatch)
    assert not loops and len({tuple(answer) for answer in expected}) > 3
    assert generate(model, TOKENIZER, prompts(), DECODING) == expected
    assert loops == [len(prompts())]
    assert not [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma"])
def test_a_token_takes_the_fast_step_in_every_layer(kind, monkeypatch):
    """The layer finds the cache whatever transformers calls it, and no argument is one that will be removed."""
    model, steps, real = model_of(kind), [], fast_decoding._attend
    monkeypatch.setattr(fast_decoding, "_attend", lambda *args: steps.append(args[0].layer_idx) or real(*args))
    answers = generate(model, TOKENIZER, prompts(4), DECODING)
    of_the_trial = decode_loop.TRIAL_STEPS - 1
    assert steps == [0, 1] * (of_the_trial + max(map(len, answers)) - 1) and len(model.model.layers) == 2


def test_answers_under_an_adapter_and_of_the_base_under_it(loops, monkeypatch):
    model = tiny_peft().to(torch.bfloat16).eval()
    adapted = by_transformers(model, monkeypatch)
    assert generate(model, TOKENIZER, prompts(), DECODING) == adapted
    with model.disable_adapter():
        base = by_transformers(model, monkeypatch)
        assert generate(model, TOKENIZER, prompts(), DECODING) == base != adapted
    assert len(loops) == 2


@pytest.mark.parametrize("kind", BY_TRANSFORMERS)
def test_windows_and_states_are_left_to_transformers(kind, loops):
    generate(tiny_zoo_model(kind), TOKENIZER, prompts(3), GreedyDecoding(2, 2))
    assert not loops


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_ended_answers_are_not_computed_where_the_others_keep_their_bits(threads, loops, monkeypatch):
    model = tiny_model().to(torch.bfloat16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    free = generate(model, TOKENIZER, prompts(), DECODING)
    model.generation_config.eos_token_id = [free[number][number + 1] for number in range(4)]
    expected = by_transformers(model, monkeypatch)
    rows = []
    model.register_forward_pre_hook(lambda _, __, inputs: rows.append(inputs["input_ids"].shape[0]), with_kwargs=True)
    assert generate(model, TOKENIZER, prompts(), DECODING) == expected
    # Of the last batch, after the trials: each pass has the rows whose answers have more tokens.
    lengths = [len(answer) for answer in expected]
    steps = [sum(length >= step for length in lengths) for step in range(1, max(lengths))]
    assert rows[-len(steps) - 1 :] == [len(prompts()), *(steps if threads == 1 else [len(prompts())] * len(steps))]
    assert len(set(steps)) > 2


def test_the_cache_grows_and_keeps_what_it_holds(monkeypatch):
    monkeypatch.setattr("tokenuq_ml.models.row_cache.COLUMNS", 3)
    model = tiny_model()
    assert generate(model, TOKENIZER, prompts(), DECODING) == by_transformers(model, monkeypatch)


def test_a_loop_that_gives_other_logits_is_not_used(loops, monkeypatch):
    model = tiny_model()
    expected = by_transformers(model, monkeypatch)
    monkeypatch.setattr(RowCache, "replace_row", lambda self, row, by: None)
    assert generate(model, TOKENIZER, prompts(), DECODING) == expected
    assert not loops


def test_a_loop_that_fails_is_not_used_and_a_lack_of_memory_is_an_error(loops, monkeypatch):
    model = tiny_model()
    expected = by_transformers(model, monkeypatch)

    def fails(*args):
        raise RuntimeError(words)

    monkeypatch.setattr(decode_loop, "Rows", fails)
    words = "a view of other sizes"
    assert generate(model, TOKENIZER, prompts(), DECODING) == expected
    words = "can't allocate memory"
    with pytest.raises(RuntimeError, match=words):
        generate(model, TOKENIZER, prompts(), DECODING)


CHANGES = {
    "a hook on the MLP": lambda layer: layer.mlp,
    "a hook on attention's query": lambda layer: layer.self_attn.q_proj,
    "a hook on the projection to the residual": lambda layer: layer.mlp.down_proj,
    "a hook on the output layer": None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_hooks_take_part(change, monkeypatch):
    model = tiny_model().to(torch.bfloat16)
    plain = by_transformers(model, monkeypatch)
    hooked = model.lm_head if CHANGES[change] is None else CHANGES[change](model.model.layers[1])
    factor = 1 + torch.arange(1, 98).to(torch.bfloat16) % 3
    hooked.register_forward_hook(lambda _, __, out: out * factor[: out.shape[-1]])
    expected = by_transformers(model, monkeypatch)
    assert generate(model, TOKENIZER, prompts(), DECODING) == expected != plain


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.found.append((str(function), tuple(result.shape)))
        return result


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_output_layer_is_one_product_for_all_prompts(kind):
    """A matrix for each text would be a copy of the layer's weight for each."""
    model = tiny_model(kind)
    with Operations() as operations:
        generate(model, TOKENIZER, prompts(), GreedyDecoding(1, 16))
    products = {name for name, shape in operations.found if shape[-1:] == (VOCAB,)}
    assert any("mm" in name for name in products) and not any("bmm" in name for name in products)


def test_states_in_another_dtype_are_multiplied_by_the_layer_itself():
    """As under autocast, where a norm returns float32."""
    model = tiny_model().to(torch.bfloat16)
    model.model.norm.register_forward_hook(lambda _, __, out: out.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert len(generate(model, TOKENIZER, prompts(), GreedyDecoding(2, 16))) == len(prompts())
