"""Answers by vLLM are the model's own greedy ones, under the same adapter, or the stage refuses them.

vLLM itself needs a GPU; a stand-in has its documented interface.
"""

from types import SimpleNamespace

import pytest
import torch

from tests.support import fake_vllm
from tests.support.generation_prompts import prompts
from tests.support.tiny_models import tiny_model, tiny_peft
from tokenuq_ml.config import StudySpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation import vllm_engine
from tokenuq_ml.evaluation.generation import GreedyDecoding, generate
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.stages import vllm_answers
from tokenuq_ml.stages.vllm_answers import answers_by_vllm, require_engine

CUDA = Numerics("cuda", torch.float32, 1, "test")
DECODING = GreedyDecoding(4, 2)


class Letters:
    """A tokenizer of single letters."""

    eos_token_id, pad_token_id = 2, 2

    def decode(self, ids, **_) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


@pytest.fixture
def llm(monkeypatch):
    monkeypatch.setattr(vllm_engine, "_memory_share", lambda device: 0.5)
    monkeypatch.setattr(vllm_answers, "_kept", vllm_answers._Kept())
    return fake_vllm.install(monkeypatch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    tiny_model().save_pretrained(folder / "model")
    tiny_peft().save_pretrained(folder / "adapter")
    return folder


def by_vllm(folders, adapted: bool, decoding: GreedyDecoding = DECODING, asked=None) -> list[list[int]]:
    """The answers by vLLM, in the order of the prompts."""
    context = SimpleNamespace(numerics=CUDA, input=lambda name: str(folders / name))
    model = tiny_peft() if adapted else tiny_model()
    candidate = SimpleNamespace(
        model=model, tokenizer=Letters(), adapter=folders / "adapter" if adapted else None, name="toy"
    )
    deal = lambda answer, batches: answers_by_vllm(context, candidate, decoding, batches)  # noqa: E731
    return generate(model, Letters(), asked or prompts(), decoding, deal=deal)


@pytest.mark.parametrize("adapted", [False, True])
def test_answers_are_those_of_the_model(llm, folders, adapted):
    model = tiny_peft() if adapted else tiny_model()
    free = generate(model, Letters(), prompts(), DECODING)
    decoding = GreedyDecoding(4, 2, (Letters().decode(free[0])[1:3],))
    expected = generate(model, Letters(), prompts(), decoding)
    assert expected != free
    assert by_vllm(folders, adapted, decoding) == expected
    (engine,) = llm.made
    assert engine.arguments["max_num_seqs"] == 2 and engine.arguments["dtype"] == "float32"
    assert engine.arguments.get("max_lora_rank") == (8 if adapted else None)


def test_an_engine_answers_the_next_evaluation_too_unless_it_is_longer(llm, folders):
    for tokens, engines in ((3, 1), (2, 1), (4, 2)):
        decoding = GreedyDecoding(tokens, 2)
        assert by_vllm(folders, False, decoding) == generate(tiny_model(), Letters(), prompts(), decoding)
        assert len(llm.made) == engines


def test_vllm_gets_many_batches_at_a_time(llm, folders, monkeypatch):
    monkeypatch.setattr(vllm_answers, "BATCHES", 3)
    assert by_vllm(folders, False) == generate(tiny_model(), Letters(), prompts(), DECODING)
    # Seven prompts are four batches of two.
    assert llm.made[0].calls == 2


def test_an_engine_without_the_adapter_is_refused(llm, folders, monkeypatch):
    monkeypatch.setattr(llm, "ignores_adapters", True)
    with pytest.raises(InputError, match="not the greedy ones of the model's own forward pass.*remove `engine`"):
        by_vllm(folders, True)


def test_adapters_that_vllm_does_not_apply_are_refused(llm, folders, tmp_path):
    with pytest.raises(InputError, match="plain LoRA adapters, and .* holds none"):
        vllm_engine.adapter_rank(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true, "r": 4}')
    with pytest.raises(InputError, match="plain LoRA adapters"):
        vllm_engine.adapter_rank(tmp_path)
    assert vllm_engine.adapter_rank(folders / "adapter") == 4
    with pytest.raises(InputError, match="rank 512 at most"):
        vllm_engine.VllmEngine(folders / "model", CUDA, 2, 64, 600)


def test_where_vllm_cannot_run_the_stage_says_what_to_do(monkeypatch):
    context = SimpleNamespace(numerics=Numerics("cpu", torch.float32, 1, "test"))
    with pytest.raises(InputError, match="needs a CUDA device, and this stage runs on cpu; remove `engine`"):
        require_engine(context)
    context.numerics = CUDA
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'tokenuq\[vllm\]'"):
        require_engine(context)
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: name)
    require_engine(context)
    monkeypatch.setattr(vllm_answers.process_group, "world_size", lambda: 2)
    with pytest.raises(InputError, match="has 2; set the study's `processes` to 1"):
        require_engine(context)


STUDY = {"name": "s", "model": "m", "dataset": "d", "ablations": ["mle"]}


def test_the_key_is_left_out_of_fields_at_its_default_and_refused_with_what_vllm_does_not_do():
    def study(engine: str = "vllm", **keys) -> StudySpec:
        return StudySpec(**STUDY, evaluation={"ifeval": {"dataset": "i", "engine": engine}}, **keys)

    assert "engine" not in str(study("model").fields())
    assert study().evaluation.fields()["ifeval"]["engine"] == "vllm"
    for keys in ({"quantization": "nf4"}, {"train": {"adapter": "dora"}}, {"processes": 2}):
        with pytest.raises(ValueError, match=r"'evaluation.ifeval.engine' is vllm.*remove one of the two"):
            study(**keys)
        study("model", **keys)
