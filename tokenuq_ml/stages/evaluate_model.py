"""What reference and student evaluation share: one model, every metric of the study, its tables.

Knows which metrics a study asks for; does not know whose model it is.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from transformers import PreTrainedModel

from tokenuq_ml.config import AlpacaEvalSpec, EvaluationSpec, GenerationSpec, Gsm8kSpec, IfEvalSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.tokenization import prompt_ids
from tokenuq_ml.evaluation.alpaca_eval import VERDICT_SCHEMA, alpaca_eval_examples, references, verdicts
from tokenuq_ml.evaluation.answer_cache import Kept
from tokenuq_ml.evaluation.answers import resumable_answers
from tokenuq_ml.evaluation.generation import cut
from tokenuq_ml.evaluation.gsm8k import Gsm8k, gsm8k_examples
from tokenuq_ml.evaluation.held_out import held_out_examples
from tokenuq_ml.evaluation.ifeval import check, ifeval_examples
from tokenuq_ml.evaluation.judge import Judge, JudgeUnavailable, local_completions
from tokenuq_ml.evaluation.length_control import LENGTH_CONTROLLED, LeftOut, length_controlled_examples
from tokenuq_ml.evaluation.metrics import metric_rows, with_identity
from tokenuq_ml.models.adapters import adapter_digest
from tokenuq_ml.models.load import load_model, load_tokenizer
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.progress import Progress, Reporter
from tokenuq_ml.scoring.token_losses import scored_batches
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.stages.train_adapter import model_digest
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tensor_digest import joined_digest

HELD_OUT = ("test", "ood")


@dataclass(frozen=True)
class Candidate:
    """A model under evaluation, as it stands: with its active adapter, or none."""

    model: PreTrainedModel
    tokenizer: object
    numerics: Numerics
    adapter: str | Path | None
    """Where its adapter lies."""
    family: str
    seed: int | None
    name: str
    """What progress is reported as."""


def evaluate_and_store(
    candidate: Candidate,
    examples: list[TokenizedExample],
    asset: AssetRequest,
    request: StageRequest,
    reporter: Reporter,
    suffix: str = "",
) -> tuple[str, dict[str, float | int | str]]:
    """Fill the outputs `evaluations`, `evaluation_examples`, `evaluation_tokens` and one for each answered dataset.

    Their names end in `suffix`. With the input `token_losses` the teacher's tokens are compared with. Returns the
    content digest, and the metrics as `<dataset>_<metric>` with what was left out and why.
    """
    return _Evaluation(candidate, asset, request, reporter).run(examples, suffix)


def forget_answers(request: StageRequest) -> None:
    """Drop the answers kept for going on: the asset is whole, and to make it again is to ask again."""
    shutil.rmtree(_answers_dir(request), ignore_errors=True)


def _answers_dir(request: StageRequest) -> Path:
    return Path(request.work_dir, "answers")


class _Evaluation:
    def __init__(self, candidate: Candidate, asset: AssetRequest, request: StageRequest, reporter: Reporter):
        self.candidate, self.asset, self.request, self.reporter = candidate, asset, request, reporter
        self.spec = EvaluationSpec(**asset.fields["evaluation"])
        self.tables: dict[str, pl.DataFrame] = {}
        self.parts: list[pl.DataFrame] = []
        self.notes: dict[str, int | str] = {}

    def run(self, examples: list[TokenizedExample], suffix: str) -> tuple[str, dict[str, float | int | str]]:
        self.held_out([example for example in examples if example.split in HELD_OUT])
        for spec, evaluate in (
            (self.spec.ifeval, self.ifeval),
            (self.spec.gsm8k, self.gsm8k),
            (self.spec.alpaca_eval, self.alpaca_eval),
        ):
            if spec is not None:
                evaluate(spec)
        self.tables["evaluation_examples"] = pl.concat(self.parts)
        metrics = metric_rows(self.tables["evaluation_examples"], self.spec)
        self.tables["evaluations"] = with_identity(metrics, self.candidate.family, self.candidate.seed)
        digests = [
            write_table(frame, table, self.asset.outputs[f"{table}{suffix}"], **self.asset.stamp)
            for table, frame in self.tables.items()
        ]
        figures = {f"{row['dataset']}_{row['metric']}": row["value"] for row in metrics.iter_rows(named=True)}
        return joined_digest(*digests), figures | self.notes

    def held_out(self, examples: list[TokenizedExample]) -> None:
        model, numerics = self.candidate.model, self.candidate.numerics
        progress = self.progress("loss", sum(len(example.input_ids) for example in examples), "tokens")
        # The one likeliest token of each is the model's confidence: every example here is held out, and in order.
        tokens = pl.concat(
            batch.rows.with_columns(confidence=batch.alternatives["probability"])
            for batch in scored_batches(model, examples, numerics, progress.add, alternatives=1)
        )
        self.tables["evaluation_tokens"] = tokens.select("example_id", "position", "loss", "entropy")
        teacher = None
        if "token_losses" in self.request.inputs:
            stored = pl.scan_parquet(Path(self.request.inputs["token_losses"], "part-*.parquet"))
            stored = stored.filter(pl.col("split").cast(pl.String).is_in(HELD_OUT))
            teacher = stored.select("example_id", "position", "loss", "entropy").collect()
        self.parts.append(held_out_examples(tokens, self.spec.calibration_bins, teacher))

    def ifeval(self, spec: IfEvalSpec) -> None:
        prompts = self.asked(spec.dataset)
        tokenizer = self.candidate.tokenizer
        ids = [prompt_ids(tokenizer, messages) for messages in prompts["messages"].to_list()]
        texts, lengths = self.answer("IF-Eval", ids, spec)
        self.tables["generations"] = check(prompts, texts).with_columns(n_tokens=lengths)
        self.parts.append(ifeval_examples(self.tables["generations"], spec.dataset))

    def gsm8k(self, spec: Gsm8kSpec) -> None:
        shots = read_table(self.request.inputs[f"examples/{spec.fewshot_dataset or spec.dataset}"])
        shots = shots.filter(pl.col("split") == "train")
        task = Gsm8k(self.asked(spec.dataset), shots, num_fewshot=spec.num_fewshot, chat=spec.chat)
        tokenizer = self.candidate.tokenizer
        ids = [prompt_ids(tokenizer, p) if spec.chat else tokenizer(p)["input_ids"] for p in task.prompts()]
        texts, lengths = self.answer("GSM8K", ids, spec, task.stop)
        answers = task.score(texts).with_columns(n_tokens=lengths)
        self.tables["gsm8k_answers"] = answers
        self.parts.append(gsm8k_examples(answers, spec.dataset, spec.split))

    def alpaca_eval(self, spec: AlpacaEvalSpec) -> None:
        """Without a judge, or where it fails, the row is left out and the notes say why."""
        asked = references(self.asked(spec.dataset))
        self.tables["alpaca_eval_verdicts"] = pl.DataFrame(schema=VERDICT_SCHEMA | {"n_tokens": pl.Int32})
        try:
            # First, so that nothing is generated for a judge that is not there.
            judge, kept = self.judge(spec)
            messages = [[{"role": "user", "content": prompt}] for prompt in asked["prompt"]]
            ids = [prompt_ids(self.candidate.tokenizer, turns) for turns in messages]
            texts, lengths = self.answer("AlpacaEval", ids, spec)
            progress = self.progress("AlpacaEval's judge", 2 * len(asked), "pairs")
            judged = verdicts(asked, texts, judge, kept, progress.add)
        except JudgeUnavailable as error:
            self.leave_out("alpaca_eval", f"no win rate: {error}")
            return
        self.tables["alpaca_eval_verdicts"] = judged.with_columns(n_tokens=lengths)
        self.notes["alpaca_eval_unjudged"] = judged["preferred"].null_count()
        self.parts.append(alpaca_eval_examples(judged, spec.dataset, spec.split))
        try:
            self.parts.append(length_controlled_examples(judged, spec.dataset, spec.split))
        except LeftOut as error:
            self.leave_out(LENGTH_CONTROLLED, str(error))

    def judge(self, spec: AlpacaEvalSpec) -> tuple[Judge, Kept]:
        """The judge, and its verdicts so far."""
        if spec.judge is None:
            raise JudgeUnavailable("the study names no judge; give one as evaluation.alpaca_eval.judge")
        decided_by, completions = {"judge": spec.judge.fields(), "code": self.asset.code_version}, None
        if spec.judge.local_model is not None:
            folder = self.request.inputs["judge"]
            model, numerics = load_model(folder, self.asset.fields["precision"])
            completions = local_completions(model, load_tokenizer(folder), numerics)
            decided_by |= {"model": model_digest(folder), "numerics": numerics.fields()}
        return Judge(spec.judge, completions), Kept(_answers_dir(self.request), **decided_by)

    def answer(
        self, what: str, prompts: Sequence[list[int]], spec: GenerationSpec, stop: Sequence[str] = ()
    ) -> tuple[list[str], pl.Series]:
        """The model's text for each prompt, and how many tokens it has."""
        model, tokenizer, numerics = self.candidate.model, self.candidate.tokenizer, self.candidate.numerics
        adapter = self.candidate.adapter
        settings = {"max_new_tokens": spec.max_new_tokens, "batch_size": spec.batch_size, "stop": list(stop)}
        kept = Kept(
            _answers_dir(self.request),
            model=model_digest(self.request.inputs["model"]),
            adapter=None if adapter is None else adapter_digest(adapter),
            numerics=numerics.fields(),
            code=self.asset.code_version,
            **settings,
        )
        # Base and adapter are of one dtype: plain inference, without autocast's toll on every small product.
        answers = resumable_answers(
            model,
            tokenizer,
            self.fitting(what, prompts, spec),
            kept,
            progress=self.progress(what, len(prompts), "prompts").add,
            **settings,
        )
        texts = [cut(tokenizer.decode(ids, skip_special_tokens=True), stop) for ids in answers]
        return texts, pl.Series([len(ids) for ids in answers], dtype=pl.Int32)

    def fitting(self, what: str, prompts: Sequence[list[int]], spec: GenerationSpec) -> list[list[int]]:
        """The prompts as the model's context takes them: of one that is too long the beginning goes, as in lm-eval."""
        context = getattr(self.candidate.model.config.get_text_config(), "max_position_embeddings", None)
        room = None if context is None else context - spec.max_new_tokens
        if room is None or all(len(ids) <= room for ids in prompts):
            return list(prompts)
        cut_off = sum(len(ids) > room for ids in prompts)
        self.reporter.warning(
            f"{self.candidate.name}: {what}: {cut_off} of {len(prompts)} prompts lose their beginning: with "
            f"{spec.max_new_tokens} new tokens the model's {context} hold {room} of a prompt"
        )
        return [ids[-max(room, 1) :] for ids in prompts]

    def asked(self, dataset: str) -> pl.DataFrame:
        examples = read_table(self.request.inputs[f"examples/{dataset}"])
        return examples.filter(pl.col("split").is_in(HELD_OUT))

    def progress(self, what: str, total: int, unit: str) -> Progress:
        return Progress(self.reporter, f"{self.candidate.name} {what}", total, unit)

    def leave_out(self, key: str, why: str) -> None:
        self.notes[key] = f"left out: {why}"
        self.reporter.warning(f"{self.candidate.name}: {why}")
