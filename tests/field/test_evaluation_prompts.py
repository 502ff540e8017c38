"""Prompts of evaluations: rendered and encoded as the same rows are for training."""

import polars as pl
import pytest

from tests.support.chat_templates import GPT_OSS, GPT_OSS_TOKENS, QWEN3
from tests.support.reporter import RecordingReporter
from tests.support.tiny_datasets import parse_row
from tests.support.tiny_models import FLOAT32
from tests.support.tiny_plans import CONFIG
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tests.support.tokenizing import turns
from tokenuq_ml.config import EvaluationSpec
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.tokenization import ConversationTokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import compare_outputs, evaluate_model
from tokenuq_ml.stages.candidate import Candidate
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.stages.versions import ablation_fields, study_fields
from tokenuq_ml.tables.parquet import write_table

HEADER_ENDS_IN_SPACE = CHATML.replace("assistant\\n", "assistant: ").replace(
    "message['role'] + '\\n'", "message['role'] + (': ' if message['role'] == 'assistant' else '\\n')"
)
TOOLS = [{"name": "price", "parameters": {"of": "apples <|im_end|>"}}]
NO_THINKING = {"enable_thinking": False}
SYSTEM = "Answer <|im_end|> briefly."
QUESTION, ANSWER = "How many <|im_start|> apples?", "12 apples.\n#### 12"
CHATS = [
    {"messages": turns(QUESTION, ANSWER), "tools": TOOLS},
    {"messages": turns(QUESTION, ANSWER, system=SYSTEM), "chat_template_kwargs": NO_THINKING},
    {"messages": turns(QUESTION, "9 apples", "Sure?", ANSWER), "tools": TOOLS, "chat_template_kwargs": NO_THINKING},
    {"prompt": turns(QUESTION, "9 apples", "Sure?"), "completion": turns("", ANSWER)[1:], "tools": TOOLS},
    {"messages": turns("Price?", "<b>9 apples", "Sure?", ANSWER, "Really?", "positive")},
]


def stored(number: int, row: dict, format: str = "messages", **keys) -> Example:
    """Return the example of a row, as it comes back from the table `examples`."""
    parsed = parse_row("prompt_completion" if "completion" in row else format, row, **keys)
    fields = parsed.source, parsed.turn_weights, parsed.template
    return Example.from_row(Example(f"d/{number:06d}", "test", parsed.messages, *fields).row)


@pytest.mark.parametrize("special", ["encode", "keep"])
@pytest.mark.parametrize("train_on", ["all", "last"])
@pytest.mark.parametrize(
    "template", [QWEN3, HEADER_ENDS_IN_SPACE, GPT_OSS], ids=["qwen3", "header ends in space", "gpt_oss"]
)
def test_the_prompt_is_the_beginning_of_what_is_trained(template, train_on, special):
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": GPT_OSS_TOKENS})
    conversations, compared = ConversationTokenizer(tokenizer, special), 0
    examples = [stored(number, row, train_on=train_on) for number, row in enumerate(CHATS)]
    for example, tokens in zip(examples, conversations.tokenize(examples), strict=True):
        if tokens.faults:
            continue
        prompt, compared = conversations.prompt_of(example), compared + 1
        last = tokens.needed - tokens.response_mask[: tokens.needed][::-1].index(False)
        assert tokens.input_ids[: len(prompt)] == prompt and len(prompt) == last
    # The others have tools or earlier answers that the template does not render, which is a fault.
    assert compared >= (5 if template is QWEN3 else 1)


def asked(monkeypatch, folder, evaluation: dict, examples: list[Example], template=QWEN3, **fields) -> list[list[int]]:
    """Return the ids of the prompts that an evaluation of `examples` generates from."""
    write_table(pl.DataFrame([e.row for e in examples]), "examples", folder / "d", spec_hash="s", code_version="1")
    given: list[list[int]] = []

    class Asked(Exception):
        pass

    def generate(context, candidate, what, prompts, *_):
        given.extend(prompts)
        raise Asked

    for module in (evaluate_model, compare_outputs):
        monkeypatch.setattr(module, "answer_prompts", generate)
    monkeypatch.setattr(compare_outputs, "_judge", lambda *_: (None, None))
    ((name, keys),) = evaluation.items()
    spec = getattr(EvaluationSpec(**{name: {"dataset": "d", **keys}}), name)
    asset = AssetRequest(fields=fields, code_version="1", outputs={})
    request = StageRequest(
        entrypoint="train_student",
        assets={"evaluation": asset},
        inputs={"examples/d": str(folder / "d")},
        work_dir=str(folder),
    )
    candidate = Candidate(None, tiny_tokenizer(chat_template=template), None, "f", 0, "toy")
    part = {"ifeval": evaluate_model._ifeval, "gsm8k": evaluate_model._gsm8k}.get(name, compare_outputs.compare_outputs)
    with pytest.raises(Asked):
        part(StageContext("evaluation", request, RecordingReporter(), FLOAT32), candidate, spec)
    return given


ROWS = {
    "alpaca_eval": {"instruction": QUESTION, "output": ANSWER},
    "ifeval": {"prompt": QUESTION, "key": 1, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "gsm8k": {"question": QUESTION, "answer": ANSWER},
}


@pytest.mark.parametrize("special", ["encode", "keep"])
@pytest.mark.parametrize("format", ROWS)
def test_evaluations_ask_with_the_rows_system_turn_tools_and_variables(tmp_path, monkeypatch, format, special):
    """Before: tools, variables and system turns of a row were lost, and special tokens were always encoded as text."""
    row = ROWS[format] | {"system": SYSTEM, "tools": TOOLS, "chat_template_kwargs": NO_THINKING}
    examples = [stored(number, row, format) for number in range(2)]
    keys = {"num_fewshot": 0} if format == "gsm8k" else {}
    fields = {} if special == "encode" else {"special_tokens_in_text": special}
    given = asked(monkeypatch, tmp_path, {format: keys}, examples, **fields)
    question = f"Question: {QUESTION}\nAnswer:" if format == "gsm8k" else QUESTION
    answered = Example("d/0", "test", turns(question, ANSWER, system=SYSTEM), template=examples[0].template)
    tokenizer = tiny_tokenizer(chat_template=QWEN3)
    (trained,) = ConversationTokenizer(tokenizer, special).tokenize([answered])
    assert given == [trained.input_ids[: trained.response_mask.index(True)]] * 2
    tools = [{"type": "function", "function": TOOLS[0]}]
    text = tokenizer.apply_chat_template(
        answered.messages[:-1], tools=tools, tokenize=False, add_generation_prompt=True, **NO_THINKING
    )
    assert tokenizer.decode(given[0]) == text and text.endswith("</think>\n\n")
    # Those of the template are special; those of the row are text, unless they are kept.
    assert given[0].count(tokenizer.eos_token_id) == text.count("<|im_end|>") - (0 if special == "keep" else 2)


def test_a_prompt_that_the_template_leaves_out_in_part_is_refused_or_allowed(tmp_path, monkeypatch):
    row = ROWS["alpaca_eval"] | {"tools": TOOLS}
    examples = [stored(0, row, "alpaca_eval")]
    with pytest.raises(InputError, match="example d/000000: the chat template leaves out the tools price"):
        asked(monkeypatch, tmp_path, {"alpaca_eval": {}}, examples, CHATML)
    (ids,) = asked(monkeypatch, tmp_path, {"alpaca_eval": {}}, examples, CHATML, template_drops="allow")
    assert "price" not in tiny_tokenizer().decode(ids)


@pytest.mark.parametrize("evaluation", [{"ifeval": {"dataset": "ifeval"}}, {"ifbench": {}}])
def test_every_evaluation_that_asks_reads_the_studys_keys_about_templates(evaluation):
    keys = {"special_tokens_in_text": "keep", "template_drops": "allow"}
    study = CONFIG.studies["quickstart"].model_copy(update={"evaluation": EvaluationSpec(**evaluation), **keys})
    ablation = CONFIG.ablations[study.ablations[0]]
    of_student = ablation_fields(CONFIG, study, ablation, "evaluation")
    for fields in (study_fields(CONFIG, study, "reference_evaluation"), of_student):
        assert {key: fields.get(key) for key in keys} == keys
