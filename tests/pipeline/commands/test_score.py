"""`tokenuq score`: its table is that of a plain forward pass and of `measure_bald`, whatever is given and however."""

import base64
import io
import json
import subprocess
import sys

import polars as pl
import pytest
import torch
from peft import IA3Config, get_peft_model

from tests.support.explorer_data import unpack
from tests.support.model_folders import folder_model
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_model, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml import measure_bald
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.row_reader import COLUMNS_OF_FORMATS
from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.models.adapters import save_adapter
from tokenuq_ml.reports.given_texts import WRITERS
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.stages import score_given
from tokenuq_ml.tables.schemas import TABLES, TOKEN_KEY
from tokenuq_pipeline import cli
from tokenuq_pipeline.commands import score

pytestmark = pytest.mark.slow

CHATS = [
    {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "The total is 36."}]},
    {"messages": [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "sells 5 of them"}]},
]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.delenv("TOKENUQ_CONFIG", raising=False)


@pytest.fixture
def in_this_process(monkeypatch):
    """Run the program in this process."""

    def run(request):
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
        return score_given.main()

    monkeypatch.setattr(score, "run_program", run)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a model, an adapter on it, and conversations."""
    folder = tmp_path_factory.mktemp("given")
    folder_model(folder / "model")
    save_adapter(tiny_peft(vocab=400), folder / "adapter")
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    return folder


def scored(given, *options, data="chats.jsonl"):
    arguments = ["score", str(given / data), "--model", str(given / "model"), "--precision", "float32", *options]
    return cli.main([str(each) for each in arguments])


@pytest.mark.usefixtures("in_this_process")
def test_the_table_is_that_of_a_plain_forward_pass(given, tmp_path):
    assert scored(given, "--output", tmp_path / "tokens.parquet") == 0
    table = pl.read_parquet(tmp_path / "tokens.parquet")
    assert table.columns == list(TABLES["token_losses"].columns)
    model, tokenizer = score_given.load_model(given / "model", "float32")[0], tiny_tokenizer()
    for index, chat in enumerate(CHATS):
        text = tokenizer.apply_chat_template(chat["messages"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        rows = table.filter(pl.col("example_id") == f"chats/{index + 1:06d}")
        assert "".join(rows["token"]) == chat["messages"][1]["content"] + "<|im_end|>"
        logp_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for position, loss, base in rows.select("position", "loss", "base_loss").iter_rows():
            assert loss == base == pytest.approx(-logp_TV[position - 1, ids[position]].item(), abs=1e-4)


@pytest.mark.usefixtures("in_this_process")
def test_an_adapter_has_its_base_beside_it_and_bald_as_in_the_library(given, tmp_path, capsys):
    files = ["--output", tmp_path / "tokens.csv", "--html", tmp_path / "page.html"]
    assert scored(given, "--adapter", given / "adapter", "--bald", 4, "--dropout", 0.3, "--json", *files) == 0
    found = json.loads(capsys.readouterr().out)
    table = pl.read_csv(tmp_path / "tokens.csv")
    assert not table["loss"].equals(table["base_loss"])
    assert found["mean_bald"] == pytest.approx(table["bald"].mean(), rel=1e-5) and found["tokens"] == len(table)
    model, numerics = score_given.load_model(given / "model", "float32")
    adapted = score_given.attach_adapter(model, given / "adapter", "x")
    own = measure_bald(adapted, tiny_tokenizer(), [chat["messages"] for chat in CHATS], samples=4, dropout=0.3)
    assert own["token"].to_list() == table["token"].to_list()
    # Masks follow the ids of texts, which differ from those of the library.
    ids = table["example_id"].unique(maintain_order=True)
    examples = [
        TokenizedExample(name, "chats", "test", *tokenize_example(tiny_tokenizer(), chat["messages"], 99)[:2])
        for name, chat in zip(ids, CHATS, strict=True)
    ]
    rows = token_uncertainty(adapted, examples, UncertaintySpec(samples=4, dropout=0.3), numerics).sort(*TOKEN_KEY)
    assert table["bald"].to_list() == pytest.approx(rows["bald"].to_list(), rel=1e-4, abs=1e-9)
    packed = (tmp_path / "page.html").read_text().partition('id="explorer-data">')[2].partition("<")[0]
    header = unpack(base64.b64decode(packed))[0]
    assert header["scored_by"].endswith("adapter") and len(header["examples"]) == 2


@pytest.mark.usefixtures("in_this_process")
def test_standard_input_is_text_or_rows(given, monkeypatch, capsys):
    for content, form in ((b"The farmer has 12 apples.", "raw_text"), (json.dumps(CHATS).encode(), "messages")):
        monkeypatch.setattr(score.sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(content)}))
        assert cli.main(["score", "-", "--model", str(given / "model"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["sources"] == {"standard input": form}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--bald", "4"], "--bald needs --adapter"),
        (["--dropout", "0.1"], "--dropout is the rate of the passes of --bald"),
        (["--adapter", "nobody", "--bald", "2"], "--adapter nobody: PEFT cannot load it"),
        (["--output", "tokens.xlsx"], "name a file that ends in .parquet"),
        (["--html", "no/such/page.html"], "there is no folder"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(given, options, sentence, capsys):
    assert scored(given, *options) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_an_adapter_that_drops_nothing_is_refused(given, tmp_path, capsys):
    model = score_given.load_model(given / "model", "float32")[0]
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "ia3")
    assert scored(given, "--adapter", tmp_path / "ia3", "--bald", 2) == 2
    assert "is IA3, which has no LoRA layer to drop features of" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_every_text_of_several_sources_is_counted(given, tmp_path, capsys):
    empty = {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "", "weight": 0}]}
    more = [*CHATS, empty, {"messages": "broken"}, *CHATS * 100]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in more))
    sources = [str(given / "chats.jsonl"), str(tmp_path / "more.jsonl")]
    assert cli.main(["score", *sources, "--model", str(given / "model"), "--limit", "3", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["texts"], found["texts_without_tokens_to_score"]) == (5, 0)
    assert len(found["sources"]) == 2 and "more.jsonl: 2 rows are broken (1 empty text, 1 wrong type)" in printed.err


@pytest.mark.usefixtures("in_this_process")
def test_a_model_that_lacks_positions_or_embeddings_is_named(given, tmp_path, capsys):
    folder_model(tmp_path / "gpt2", "gpt2")
    (tmp_path / "long.txt").write_text("word " * 3000)
    asked = ["score", str(tmp_path / "long.txt"), "--model", str(tmp_path / "gpt2")]
    assert cli.main([*asked, "--json"]) == 0
    assert cli.main([*asked, "--max-length", "3000"]) == 2
    assert "the longest text has" in capsys.readouterr().err
    model = tiny_model(vocab=20)
    model.save_pretrained(tmp_path / "small")
    tiny_tokenizer(tmp_path / "small")
    assert cli.main(["score", str(given / "chats.jsonl"), "--model", str(tmp_path / "small")]) == 2
    assert "the model has only 20 embeddings" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_the_remedy_for_a_template_that_drops_a_turn_is_one_that_the_command_has(tmp_path, capsys):
    template = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    )
    folder_model(tmp_path / "model", chat_template=template)
    turns = [{"role": "system", "content": "Answer as a pirate."}, *CHATS[0]["messages"]]
    (tmp_path / "pirates.jsonl").write_text(json.dumps({"messages": turns}))
    assert cli.main(["score", str(tmp_path / "pirates.jsonl"), "--model", str(tmp_path / "model")]) == 2
    said = capsys.readouterr().err
    assert "leaves out the system's text" in said and "as `chat_template:` of an entry of models.yaml" in said
    assert "studies.yaml" not in said


@pytest.mark.usefixtures("in_this_process")
def test_memory_that_runs_out_is_a_sentence(given, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(score_given, "measure", fail)
    assert scored(given) == 1
    assert "memory ran out (no room); set a smaller --max-length" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_unknown_data_and_models_are_named(given, tmp_path, capsys):
    assert cli.main(["score", "nothing.jsonl", "--model", str(given / "model")]) == 2
    assert "nothing.jsonl: there is no such file" in capsys.readouterr().err
    (tmp_path / "odd.jsonl").write_text('{"a": 1, "b": "text"}\n')
    assert scored(given, data=tmp_path / "odd.jsonl") == 2
    assert "no format has the columns of the first row (a, b)" in capsys.readouterr().err
    assert cli.main(["score", str(given / "chats.jsonl"), "--model", "nothing"]) == 2
    assert "nothing: there is no such file or folder, no model" in capsys.readouterr().err


def test_the_parser_knows_what_the_program_knows():
    assert set(score.FORMATS) == set(COLUMNS_OF_FORMATS) and tuple(WRITERS) == score.SUFFIXES


def test_the_program_runs_in_a_process_of_its_own(given):
    command = [sys.executable, "-m", "tokenuq_pipeline.cli", "score", str(given / "chats.jsonl")]
    done = subprocess.run([*command, "--model", str(given / "model")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "2 texts" in done.stdout and "Highest loss" in done.stdout
