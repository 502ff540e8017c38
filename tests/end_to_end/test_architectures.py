"""Every named architecture runs through the complete asset graph, each as a tiny random model, in one process.

Every second one is a base model that gets the default chat template. All vocabularies are larger than the tokenizer's,
as in published models. The padding token is the end-of-sequence token, or missing.
"""

import json

import dagster as dg
import polars as pl
import pytest
import torch
import yaml
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from tests.support.pictures import leave_out_pictures
from tests.support.tiny_models import ARCHITECTURES, FLOAT32, RECURRENT, tiny_architecture
from tests.support.tiny_study import StagesInProcess
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tokenuq_ml.config import LoraSpec, UncertaintySpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.data.batching import pack
from tokenuq_ml.data.stored_examples import read_examples
from tokenuq_ml.data.tokenization import default_template
from tokenuq_ml.evaluation.generation import GreedyDecoding, generate
from tokenuq_ml.kernels.scores import token_losses
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.models.forward import head_of, hidden_states, packing_is_exact
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.models.lora_linear import FusedLoraLinear
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.tables.scanning import scan
from tokenuq_pipeline.definitions import build_defs

pytestmark = pytest.mark.slow
ABLATION = "paper_top25"
VOCAB = 384
"""About thirty more than the tokenizer has."""
BASE_MODELS = list(ARCHITECTURES)[::2]
WITHOUT_PAD = list(ARCHITECTURES)[::3]
EACH_TIME = ("gemma2", "gpt2", "mixtral", "mamba")
"""Those that `make test` runs; `make test-heavy` runs all."""
STUDY = {
    "dataset": "talks",
    "max_length": 128,
    "precision": "float32",
    "train": {
        # All examples are one batch, so that steps are steps on the same examples.
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.05},
    },
    "uncertainty": {"samples": 3, "dropout": 0.2},
    "curriculum": {"examples": 1, "samples": 2, "fractions": [0.0, 1.0]},
    "evaluation": {"bootstrap": 20},
    "ablations": [ABLATION],
}


def talk(number: int) -> str:
    """Return two questions with their answers, longer than the attention windows."""
    said = (
        f"How many apples are {number} and 3?",
        f"The total is {number + 3}.",
        "And the price?",
        f"{number} dollars.",
    )
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    return json.dumps({"messages": turns})


class ArchitectureStudies:
    """One study per architecture, all of one dataset."""

    def __init__(self, folder):
        self.home = folder / "store"
        for kind in ARCHITECTURES:
            tokenizer = tiny_tokenizer(chat_template=None if kind in BASE_MODELS else CHATML)
            if kind in WITHOUT_PAD:
                tokenizer.pad_token = None
            tokenizer.save_pretrained(folder / kind)
            tiny_architecture(kind, VOCAB).save_pretrained(folder / kind)
        (folder / "talks.jsonl").write_text("\n".join(talk(number) for number in range(3, 10)))
        sizes = {"train": 4, "validation": 1, "test": 2}
        files = {
            "models": {kind: {"source": "path", "path": kind} for kind in ARCHITECTURES},
            "datasets": {"talks": {"format": "messages", "path": "talks.jsonl", "sizes": sizes}},
            "studies": {f"of_{kind}": {**STUDY, "model": kind} for kind in ARCHITECTURES},
            "ablations": {ABLATION: {"select": {"by": "loss", "quantile": 0.25}, "rest": "distill"}},
        }
        for name, entries in files.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(entries))
        self.defs = build_defs(load_config(folder), self.home, StagesInProcess())

    def run(self, kind: str) -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            result = self.defs.resolve_job_def(f"of_{kind}").execute_in_process(instance=instance, raise_on_error=False)
        assert result.success, [event.event_specific_data for event in result.all_events if event.is_step_failure]
        checks = result.get_asset_check_evaluations()
        assert {"bald_above_noise", "one_row_per_response_token"} <= {check.check_name for check in checks}
        assert not [c for c in checks if not c.passed and c.severity == dg.AssetCheckSeverity.ERROR]

    def table(self, name: str, kind: str) -> pl.DataFrame:
        return scan(name, self.home).filter(pl.col("study") == f"of_{kind}").collect()

    def plain(self, kind: str, adapter: str | None = None):
        """Load a model as a user would, without tokenuq."""
        model = AutoModelForCausalLM.from_pretrained(self.home / f"models/{kind}", dtype=torch.float32)
        return (PeftModel.from_pretrained(model, self.home / adapter) if adapter else model).eval()


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        yield ArchitectureStudies(tmp_path_factory.mktemp("architectures"))


@torch.no_grad()
def plain_scores(model, example) -> torch.Tensor:
    """Return loss and entropy `[2, N]` of the response tokens, from all logits in float64."""
    logp = model(torch.tensor([list(map(int, example.input_ids))])).logits[0].double().log_softmax(-1)
    before = [position - 1 for position in example.positions]
    labels = [int(example.input_ids[position]) for position in example.positions]
    return torch.stack([-logp[before, labels], -(logp.exp() * logp).sum(-1)[before]])


@pytest.mark.parametrize(
    "kind",
    [kind if kind in EACH_TIME else pytest.param(kind, marks=pytest.mark.heavy) for kind in ARCHITECTURES],
)
def test_the_complete_graph_matches_plain_transformers_and_peft(kind, studies):
    studies.run(kind)
    examples = read_examples(studies.home / f"tokenized_dataset/study=of_{kind}")
    base, numerics = load_model(studies.home / f"models/{kind}", "float32")
    check_that_answers_are_trained_with_their_end(kind, studies, examples)
    check_token_losses(kind, studies, examples)
    check_that_bald_is_from_the_adapters_dropout(kind, studies, examples, base)
    check_training_and_reload_of_the_student(kind, studies, examples)
    check_adapted_layers(kind, base)
    check_packing(kind, base, examples)
    check_answers(kind, studies, base, examples)


def check_that_answers_are_trained_with_their_end(kind, studies, examples):
    tokenizer = load_tokenizer(studies.home / f"models/{kind}")
    assert (tokenizer.chat_template == default_template()) == (kind in BASE_MODELS)
    assert (tokenizer.pad_token_id is None) == (kind in WITHOUT_PAD)
    assert max(max(example.input_ids) for example in examples) < len(tokenizer) < VOCAB
    for example in examples:
        said = [
            int(token) if scored else -1 for token, scored in zip(example.input_ids, example.response_mask, strict=True)
        ]
        assert said.count(tokenizer.eos_token_id) == 2
        text = tokenizer.decode([token for token in said if token >= 0])
        assert text.startswith("The total is ") and text.endswith(" dollars." + tokenizer.eos_token)


def check_token_losses(kind, studies, examples):
    """Includes trap 1: the caps of Gemma-2, which only its eager attention applies."""
    teacher = studies.plain(kind, f"baseline_teacher/study=of_{kind}/adapter")
    if kind == "gemma2":
        assert teacher.config._attn_implementation == "eager"
    rows = studies.table("token_losses", kind).sort("example_id", "position")
    for example in examples:
        stored = rows.filter(pl.col("example_id") == example.example_id)
        assert stored["position"].to_list() == list(example.positions)
        with teacher.disable_adapter():
            bare = plain_scores(teacher, example)
        for columns, expected in (
            (("loss", "entropy"), plain_scores(teacher, example)),
            (("base_loss", "base_entropy"), bare),
        ):
            got = torch.tensor(stored.select(columns).to_numpy().T)
            assert (got - expected).abs().max() < 1e-4


def check_that_bald_is_from_the_adapters_dropout(kind, studies, examples, base):
    """Traps 2 and 16: BALD is positive, and no other dropout, such as GPT-2's, takes part."""
    assert studies.table("token_uncertainty", kind)["bald"].max() > 1e-3
    fresh = add_adapter(base, LoraSpec(rank=4, alpha=8, dropout=0.3), 0).train()
    bald = token_uncertainty(fresh, examples[:2], UncertaintySpec(samples=2, dropout=0.3), FLOAT32)["bald"]
    fresh.unload().eval()
    # B is zero, so that the adapter's dropout changes nothing.
    assert bald.max() < 1e-6


def check_training_and_reload_of_the_student(kind, studies, examples):
    log = studies.table("training_log", kind).filter(pl.col("ablation") == ABLATION).sort("step")
    assert len(log) == 3 and log["loss"][-1] < log["loss"][0]
    student = studies.plain(kind, f"student/study=of_{kind}/ablation={ABLATION}/adapter")
    scores = torch.cat([plain_scores(student, example) for example in examples if example.split == "test"], 1)
    evaluation = studies.table("evaluations", kind).filter(ablation=ABLATION, split="test", metric="loss")
    assert evaluation["value"].item() == pytest.approx(scores[0].mean().item(), abs=1e-4)


def check_adapted_layers(kind, base):
    linear = {name for name, module in base.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    head = next(name for name, module in base.named_modules() if module is base.get_output_embeddings())
    peft = add_adapter(base, LoraSpec(rank=2, alpha=2), 0)
    adapted = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    unreached = {name for name in linear if kind in RECURRENT and name.endswith(("out_proj", "dt_proj"))}
    assert head in linear and set(adapted) == linear - {head} - unreached
    assert len(adapted) >= 2 * (2 if kind in RECURRENT else 4)
    assert all(isinstance(module, FusedLoraLinear) for module in adapted.values())
    assert bool(peft.active_peft_config.fan_in_fan_out) == (kind == "gpt2")
    peft.unload()


def blind(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention that ignores masks and positions, as some kernels do."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


@torch.no_grad()
def check_packing(kind, base, examples):
    """Trap 5. A state is carried over the borders of packed sequences, so they are padded."""
    if kind in RECURRENT:
        assert not packing_is_exact(base, FLOAT32)
        return
    batch = pack(examples[:3])
    hidden_ND = batch.predicting(hidden_states(base, batch.model_inputs, FLOAT32))
    losses_N = token_losses(hidden_ND, head_of(base), batch.label_N)
    alone = torch.cat([plain_scores(base, example)[0] for example in examples[:3]])
    assert packing_is_exact(base, FLOAT32) and (losses_N - alone).abs().max() < 1e-4
    ALL_ATTENTION_FUNCTIONS.register("blind", blind)
    ALL_MASK_ATTENTION_FUNCTIONS.register("blind", lambda *_, **__: None)
    own = base.config._attn_implementation
    base.set_attn_implementation("blind")
    assert not packing_is_exact(base, FLOAT32)
    base.set_attn_implementation(own)


def check_answers(kind, studies, base, examples):
    """Ids that the tokenizer lacks take part in the softmax, and decode to nothing."""
    tokenizer = load_tokenizer(studies.home / f"models/{kind}")
    prompts = [
        list(map(int, example.input_ids[:length])) for example, length in zip(examples, (30, 12, 21), strict=False)
    ]
    answers = generate(base, tokenizer, prompts, GreedyDecoding(max_new_tokens=6, batch_size=3))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 6:
            with torch.no_grad():
                ids.append(int(base(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                ids.pop()
                break
        assert answer == ids[len(prompt) :]
    assert tokenizer.decode([VOCAB - 1]) == ""
