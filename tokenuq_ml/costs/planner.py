"""Cost estimates for each stage of a study: tokens, FLOPs, bytes on disk, peak memory, and from these, seconds.

Closed forms over a model's sizes and a dataset's lengths, with constants that were measured once (`work.py`,
`memory.py`, `passes.py`); nothing is run. FLOPs are those of `flops.py`. Time is FLOPs by kind of work, over the
machine's rate of matrix products at the model's shapes (`matmul_rate.py`), over the efficiency of that kind of work.
Does not import torch.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from tokenuq_ml.config import BASE_ROW, REFERENCE_ROWS, TEACHER_ROW, AblationSpec, StudySpec
from tokenuq_ml.config.families import is_measured_on_validation
from tokenuq_ml.config.load import Config
from tokenuq_ml.config.truth import TRUTH_FRACTIONS
from tokenuq_ml.costs.ablation_step import ablation_step
from tokenuq_ml.costs.budgets import budget_of, epochs_of, estimator_passes, rank_of
from tokenuq_ml.costs.dataset_rows import scored_splits, splits_of
from tokenuq_ml.costs.flops import Architecture, with_attention
from tokenuq_ml.costs.generated import (
    PAIRWISE,
    full_lengths,
    generated_evaluations,
    generation_cost,
    largest_batch,
)
from tokenuq_ml.costs.lengths import Lengths, lengths
from tokenuq_ml.costs.machine import BALD_PRECISION, Machine
from tokenuq_ml.costs.memory import PROCESS_BYTES, PeakMemory
from tokenuq_ml.costs.passes import response_tokens, scoring_flops, total_tokens, training_flops
from tokenuq_ml.costs.root_work import dataset_work, model_work
from tokenuq_ml.costs.sources import ModelSizes
from tokenuq_ml.costs.table_bytes import TABLE_BYTES
from tokenuq_ml.costs.training_state import checkpoint_bytes, stored_bytes
from tokenuq_ml.costs.work import Work


class Planner:
    """Estimates the work of each stage of one study.

    Args:
        config: the configuration with the study's models, datasets and ablations.
        study: the study.
        sizes: model -> its sizes; None if they are not known. Without the sizes of the study's model, only tokens are
            estimated.
        measured: (dataset, split) -> lengths, of what is already tokenised.
        machine: what the plan is for; may be None if no sizes are known.
        fresh: stages that need no work. Stages that share a pass cost more alone.
        train_rows: rows of the train split, from its lengths; by default as many as it has.
    """

    def __init__(
        self,
        config: Config,
        study: StudySpec,
        sizes: Mapping[str, ModelSizes | None],
        measured: Mapping[tuple[str, str], Lengths],
        machine: Machine | None,
        fresh: frozenset[str] = frozenset(),
        train_rows: Callable[[Lengths], int] | None = None,
    ):
        self.config, self.study, self.sizes, self.machine, self.fresh = config, study, sizes, machine, fresh
        known = sizes[study.model]
        self.architecture: Architecture | None = with_attention(known.architecture, study.attention) if known else None
        self.only_states = study.train.adapter == "none" or (known is not None and known.softcapped)
        self.memory = PeakMemory(self.architecture, study, machine)
        self.train_data = self._lengths(study.dataset, "train", measured)
        if train_rows is not None:
            self.train_data = replace(self.train_data, rows=train_rows(self.train_data))
        self.held_out = [self._lengths(study.dataset, "test", measured)]
        for name in study.ood:
            # All splits of an out-of-distribution dataset count as one, or it has one for that.
            self.held_out += [self._lengths(name, split, measured) for split in scored_splits(config.datasets[name])]
        self.validation = self._lengths(study.dataset, "validation", measured)
        self.data = [self.train_data, self.validation, *self.held_out]
        self.generated_evaluations = generated_evaluations(study, config.datasets)
        self.online_reason = self._online_reason()

    def work(self, stage: str, name: str = "") -> Work:
        """Return the work of an asset: `<study>/<stage>`, `<study>/<name>/<stage>` of an ablation, or `<stage>/<name>`.

        Args:
            stage: the stage.
            name: an ablation, a model or a dataset, for the stages that have one asset for each.
        """
        if stage == "models":
            language = self.config.models[name].language
            tokens = self._lengths(language, "train", {}).tokens if language else 0.0
            return model_work(self.config.models[name], self.sizes[name], tokens)
        if stage == "datasets":
            spec = self.config.datasets[name]
            tokens = total_tokens([full_lengths(spec, split, self.config.datasets) for split in splits_of(spec)])
            return dataset_work(tokens, TABLE_BYTES["examples"])
        if stage in ("teacher_sweep", "uncertainty_analysis", "ablation_report"):
            return Work(memory={"process": PROCESS_BYTES})
        if stage == "tokenized_dataset":
            tokens = total_tokens(self.data)
            return Work(tokens, disk={stage: TABLE_BYTES[stage] * tokens}, memory={"process": PROCESS_BYTES})
        if self.architecture is None:
            return Work(self._tokens_without_sizes(stage, name), flop=None)
        if stage in ("student", "curriculum", "evaluation") and name:
            of_ablation = {"student": self._student, "curriculum": self._curriculum, "evaluation": self._evaluation_of}
            return of_ablation[stage](self.config.ablations[name])
        if stage in ("candidate_teacher", "ensemble_teacher"):
            trained = self._training(self._rank, self._epochs(stage, row=name), {}, {})
            return trained if stage == "ensemble_teacher" else self._with_validation(trained, self._rank)
        estimates = {
            "baseline_teacher": self._baseline_teacher,
            "token_losses": self._token_losses,
            "teacher_hidden": self._teacher_hidden,
            "token_uncertainty": self._token_uncertainty,
            "true_divergence": self._true_divergence,
            "teacher_change": self._teacher_change,
            "uncertainty_estimates": self._uncertainty_estimates,
            "reference_evaluation": self._reference_evaluation,
            "evaluation": self._evaluation,
        }
        return estimates[stage]()

    # What the stages share.

    @property
    def _rank(self) -> int:
        """The rank of the teacher's adapter; 0 without one."""
        return 0 if self.study.train.adapter == "none" else self.study.train.lora.rank

    def _lengths(self, dataset: str, split: str, measured: Mapping[tuple[str, str], Lengths]) -> Lengths:
        return lengths(self.config.datasets[dataset], split, self.study.max_length, measured, self.config.datasets)

    def _online_reason(self) -> str | None:
        """Return why students run the teacher online; None if its states are cached."""
        if self.study.teacher_states == "online":
            return "the study says so"
        budget = self.study.teacher_cache_gigabytes
        if self.architecture is None or self.machine is None or self._cache_bytes() <= budget * 1e9:
            return None
        return f"the cache would take {self._cache_bytes() / 1e9:.0f} GB, and its budget is {budget:g} GB"

    def _cache_bytes(self) -> float:
        sizes = self.architecture.cache_bytes(self.machine.itemsize)
        per_token = sizes["hidden_states"] + (0 if self.only_states else sizes["mean_embeddings"])
        # A teacher that was trained without an adapter has a head of its own.
        own = self.architecture.hidden * self.architecture.vocabulary if self.study.train.adapter == "none" else 0
        return self.train_data.rows * self.train_data.response * per_token + own * self.machine.itemsize

    def _training(self, rank: int, epochs: float, step: Mapping, outputs: Mapping[str, float]) -> Work:
        """Return the work of a training.

        Args:
            rank: the LoRA rank.
            epochs: how often each example is trained.
            step: fields of `Step` that the ablation decides.
            outputs: bytes of outputs other than the adapter.
        """
        data = [self.train_data]
        train, trains_base = self.study.train, self.study.train.adapter == "none"
        keys = {"trains_base": trains_base, "recomputes": train.gradient_checkpointing}
        flop = training_flops(self.architecture, data, epochs, 0 if trains_base else rank, **keys, **step).total
        return Work(
            epochs * total_tokens(data),
            {"train": flop},
            {"trained model" if trains_base else "adapter": stored_bytes(self.architecture, train, rank), **outputs},
            self.memory.training(rank),
            temporary_disk={"checkpoints": checkpoint_bytes(self.architecture, train, rank)},
        )

    def _epochs(self, stage: str, ablation: AblationSpec | None = None, row: str = "") -> float:
        return epochs_of(budget_of(self.study, stage, ablation, row), self.train_data.rows, ablation)

    def _tokens_without_sizes(self, stage: str, name: str) -> float:
        if stage in ("baseline_teacher", "candidate_teacher", "ensemble_teacher", "student"):
            ablation = self.config.ablations[name] if stage == "student" else None
            return self._epochs(stage, ablation, name) * total_tokens([self.train_data])
        passes = {"token_losses": 2, "token_uncertainty": self.study.uncertainty.samples}.get(stage, 0)
        return passes * total_tokens(self.data)

    # One method per stage.

    def _baseline_teacher(self) -> Work:
        if self.study.teacher_sweep is not None:
            # A copy of a candidate.
            return Work(
                disk={"adapter": stored_bytes(self.architecture, self.study.train, self._rank)},
                memory={"process": PROCESS_BYTES},
            )
        return self._training(self._rank, self._epochs("baseline_teacher"), {}, {})

    def _with_validation(self, work: Work, rank: int) -> Work:
        """Return the work with a pass over the validation split, by which settings are compared."""
        data, flop = [self.validation], dict(work.flop or {})
        flop["score"] = flop.get("score", 0.0) + scoring_flops(self.architecture, data, rank)
        return replace(work, tokens=work.tokens + total_tokens(data), flop=flop)

    def _token_losses(self) -> Work:
        precision = self.study.precision.tables
        flop = scoring_flops(self.architecture, self.data, self._rank) + scoring_flops(self.architecture, self.data, 0)
        return Work(
            2 * total_tokens(self.data),
            {"score": flop},
            {"token_losses": TABLE_BYTES["token_losses"] * response_tokens(self.data)},
            self.memory.inference(precision),
            precision=precision,
        )

    def _teacher_hidden(self) -> Work:
        """Return the work of caching the teacher's states.

        Mean embeddings take two head products per train token. The states come from the pass of `token_losses`, unless
        that stage is fresh or has another precision.
        """
        precision = self.study.precision.training
        memory = self.memory.inference(precision)
        if self.online_reason is not None:
            return Work(memory=memory)
        response = self.train_data.rows * self.train_data.response
        flop, tokens = 0.0 if self.only_states else 2 * response * self.architecture.head_product, 0.0
        training, tables = (
            self.machine.in_precision(name).precision for name in (precision, self.study.precision.tables)
        )
        if "token_losses" in self.fresh or training != tables:
            tokens = total_tokens(self.data)
            flop += scoring_flops(self.architecture, self.data, self._rank)
        return Work(tokens, {"score": flop}, {"teacher_hidden": self._cache_bytes()}, memory, precision=precision)

    def _token_uncertainty(self) -> Work:
        return self._dropout_passes("token_uncertainty", self.study.uncertainty.samples)

    def _uncertainty_estimates(self) -> Work:
        uncertainty, train = self.study.uncertainty, total_tokens([self.train_data]) / total_tokens(self.data)
        work = self._dropout_passes("uncertainty_estimates", estimator_passes(uncertainty, train))
        disk = {name: size * len(uncertainty.measured) for name, size in work.disk.items()}
        return replace(work, disk=disk, memory={**work.memory, **self.memory.posterior()})

    def _teacher_change(self) -> Work:
        """Return the work of the passes of `token_losses`, in float32, and of two products per token to compare."""
        work, response, memory = self._token_losses(), response_tokens(self.data), self.memory.inference(BALD_PRECISION)
        flop = {"score": work.flop["score"] + 2 * response * self.architecture.head_product}
        disk = {"teacher_change": TABLE_BYTES["teacher_change"] * response}
        return replace(work, flop=flop, disk=disk, memory=memory, precision=BALD_PRECISION)

    def _true_divergence(self) -> Work:
        passes = len(TRUTH_FRACTIONS) + (len(TRUTH_FRACTIONS) - 1) * self.study.uncertainty.samples
        return self._dropout_passes("true_divergence", passes)

    def _dropout_passes(self, stage: str, passes: float) -> Work:
        return Work(
            passes * total_tokens(self.data),
            {"score": passes * scoring_flops(self.architecture, self.data, self._rank)},
            {stage: TABLE_BYTES[stage] * response_tokens(self.data)},
            self.memory.bald(self.study.uncertainty.samples),
            precision=BALD_PRECISION,
        )

    def _evaluation(self, rank: int | None = None, left_out: Collection[str] = ()) -> Work:
        """Return the work of evaluating one model; `rank` of its adapter: the study's by default, 0 for the base."""
        rank, model = self._rank if rank is None else rank, self.architecture
        precision, size = self.study.precision.tables, largest_batch(self.study)
        asked = [one for one in self.generated_evaluations if one.name not in left_out]
        answers = generation_cost(model, asked, rank, size, self.memory.weight_bytes(precision))
        flop = {"score": scoring_flops(model, self.held_out, rank) + answers.prompt_flop, "generate": answers.flop}
        disk = TABLE_BYTES["evaluation_tokens"] * response_tokens(self.held_out) + answers.disk
        return Work(
            total_tokens(self.held_out) + answers.tokens,
            flop,
            {"evaluation tables": disk},
            self.memory.evaluation(self.generated_evaluations, size),
            precision=precision,
            reads=answers.reads,
        )

    def _evaluation_of(self, ablation: AblationSpec) -> Work:
        rank = rank_of(self.study, ablation)
        work, ablations = self._evaluation(rank), {name: self.config.ablations[name] for name in self.study.ablations}
        return self._with_validation(work, rank) if is_measured_on_validation(ablation, ablations) else work

    def _reference_evaluation(self) -> Work:
        pairwise = self.study.evaluation.pairwise
        # Neither is judged: they answer only if students are compared with them.
        left_out = {row: [] if pairwise and pairwise.versus == row else [PAIRWISE] for row in REFERENCE_ROWS}
        base, teacher = self._evaluation(0, left_out[BASE_ROW]), self._evaluation(left_out=left_out[TEACHER_ROW])
        flop = {kind: base.flop[kind] + teacher.flop[kind] for kind in base.flop}
        disk = {name: 2 * size for name, size in teacher.disk.items()}
        reads = base.reads + teacher.reads
        return Work(2 * teacher.tokens, flop, disk, teacher.memory, precision=teacher.precision, reads=reads)

    def _student(self, ablation: AblationSpec) -> Work:
        train, rank = self.study.train, rank_of(self.study, ablation)
        epochs = self._epochs("student", ablation)
        snapshots = sum(0 < fraction < 1 for fraction in self.study.curriculum.fractions)
        rows = epochs * self.train_data.rows * self.train_data.response
        outputs = {
            "snapshots": snapshots * stored_bytes(self.architecture, self.study.train, rank),
            "selections": TABLE_BYTES["selections"] * rows,
        }
        step = ablation_step(ablation, train, cached=self.online_reason is None, only_states=self.only_states)
        return self._training(rank, epochs, step, outputs)

    def _curriculum(self, ablation: AblationSpec) -> Work:
        spec, rank, few = self.study.curriculum, rank_of(self.study, ablation), self.validation
        sample = [Lengths(min(spec.examples, few.rows), few.tokens, few.response, few.squares, few.origin)]
        passes = len(set(spec.fractions)) * (1 + spec.samples)
        return Work(
            passes * total_tokens(sample),
            {"score": passes * scoring_flops(self.architecture, sample, rank)},
            memory=self.memory.inference(BALD_PRECISION),
            precision=BALD_PRECISION,
        )
