"""What each stage of a study will cost: tokens, FLOPs, bytes on disk, peak memory by part, seconds.

Closed forms over a model's sizes and a dataset's lengths, with constants that were measured once and are named here;
nothing is run. Does not know where sizes and lengths come from (`plan_inputs.py`), nor torch.

FLOPs are those of `costs.py`. Time is FLOPs by kind of work over this machine's rate of matrix products at the model's
shapes (`gemm_rate.py`) times the share of that rate which such work reached in a measured run.
"""

from dataclasses import dataclass, field, replace

from tokenuq_ml.config import AblationSpec, DatasetSpec, SelectSpec, StudySpec
from tokenuq_ml.config.ablation import Schedule
from tokenuq_ml.config.load import Config
from tokenuq_ml.costs.flops import Architecture, Flops, Step, flops
from tokenuq_ml.costs.plan_inputs import Lengths, ModelSizes, lengths

MIB = 2**20
EFFICIENCY = {"train": 0.57, "score": 0.68, "generate": 0.14}
"""Share of the rate of plain products that each kind of work reached with SmolLM2-135M on two cores. Of
docs/results/benchmarks.md: a student's step of 1,100 GFLOP in 5.34 s where products run at 362 GFLOP/s; scoring mixed
lengths. Generation: 175 tokens/s in batches of 16, of 0.29 GFLOP each."""
STARTUP_S = 10.0
"""Of a child process: imports, the model, the data."""
PADDING = 1.06
"""Padded tokens a token of training batches of like length: 9,856 to 9,276 in docs/results/ablation_matrix.md."""
PROCESS_BYTES = 500 * MIB
"""A process with torch, transformers and peft imported."""
BALD_PRECISION, FLOAT32_BYTES = "float32", 4
OPTIMISER_BYTES = 16
"""A trained number: float32 weight, gradient and AdamW's two moments."""
SAVED_COPIES = 2
"""Numbers kept for the way back a token, layer and feature in or out of its linear maps. A step of 2,048 tokens of
SmolLM2 peaked at 3,337 MiB; with this the parts add up to 3,419."""
CHUNK_BYTES, STATES_BYTES = 64 * MIB, 256 * MIB
"""Budgets of `kernels.py` and `mc_dropout.py`, which a test compares."""
TABLE_BYTES = {
    "examples": 1.8,
    "tokenized_dataset": 1.7,
    "token_losses": 27.0,
    "token_uncertainty": 26.2,
    "selections": 7.7,
    "evaluation_tokens": 14.0,
    "answers": 4.0,
}
"""Bytes a row on disk (a token; the first two and the last: a token of text). Measured of ablation_matrix, but
for `examples`, `evaluation_tokens` and `answers`, which are estimates."""


@dataclass(frozen=True)
class Machine:
    """What `gemm_rate` says."""

    flop_per_second: float
    device: str
    precision: str
    threads: int
    precision_reason: str
    batch_tokens: int
    others: dict[str, dict] = field(default_factory=dict)
    """Rates in other precisions: a study's word for one -> `precision` as resolved, and `flop_per_second`."""

    def at(self, precision: str) -> "Machine":
        """Return the machine in another of the study's precisions."""
        return replace(self, **self.others.get(precision, {}))

    @property
    def itemsize(self) -> int:
        return 4 if self.precision == "float32" else 2

    @property
    def at_once(self) -> int:
        """Batches of inference that run side by side."""
        return self.threads if self.device == "cpu" else 1


@dataclass(frozen=True)
class Work:
    """Of one stage. `flop` is None where the model's sizes are not known; bytes that follow from them are left out."""

    tokens: float = 0.0
    """Through a model, or written; padding left out."""
    flop: dict[str, float] | None = field(default_factory=dict)
    """By kind, a key of EFFICIENCY."""
    disk: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    """Peak, by part."""
    passing: dict[str, float] = field(default_factory=dict)
    """Bytes on disk while it runs alone."""
    precision: str = ""
    """The study's word for what it is computed in; the training's where empty."""

    def seconds(self, machine: Machine, starts: bool) -> float | None:
        """Wall clock; `starts`: with the start of the process that it is made by."""
        if self.flop is None:
            return None
        machine = machine and machine.at(self.precision)
        computing = sum(flop / (machine.flop_per_second * EFFICIENCY[kind]) for kind, flop in self.flop.items())
        return computing + (STARTUP_S if starts else 0.0)


class Planner:
    """The stages of one study. `measured` has lengths of what is tokenised already, `fresh` the stages that are made.

    `machine` may be None where no sizes are known: then only tokens are.
    """

    def __init__(
        self,
        config: Config,
        study: StudySpec,
        sizes: dict[str, ModelSizes | None],
        measured: dict[tuple[str, str], Lengths],
        machine: Machine | None,
        fresh: frozenset[str] = frozenset(),
    ):
        self.fresh = fresh
        self.config, self.study, self.sizes, self.machine = config, study, sizes, machine
        known = sizes[study.model]
        self.architecture: Architecture | None = known.architecture if known else None
        self.softcapped = known is not None and known.softcapped
        self.train_data = self._lengths(study.dataset, "train", measured)
        self.held_out = [self._lengths(study.dataset, "test", measured)]
        for name in study.ood:
            # Whatever their split is called, all of them count as such.
            self.held_out += [self._lengths(name, split, measured) for split in config.datasets[name].sizes]
        self.validation = self._lengths(study.dataset, "validation", measured)
        self.data = [self.train_data, self.validation, *self.held_out]
        self.asked = self._asked()
        self.online_because = self._over_budget()

    def work(self, stage: str, name: str = "") -> Work:
        """Of the asset `<study>/<stage>`, `<study>/<name>/<stage>` (an ablation's), or `<stage>/<name>`."""
        if stage == "models":
            return self._model(name)
        if stage == "datasets":
            return self._dataset(self.config.datasets[name])
        if stage in ("uncertainty_analysis", "ablation_report"):
            return Work(memory={"process": PROCESS_BYTES})
        if stage == "tokenized_dataset":
            tokens = _tokens(self.data)
            disk = {stage: TABLE_BYTES[stage] * tokens}
            return Work(tokens, disk=disk, memory={"process": PROCESS_BYTES})
        if self.architecture is None:
            return Work(self._tokens_alone(stage), flop=None)
        if stage in ("student", "curriculum"):
            return getattr(self, f"_{stage}")(self.config.ablations[name])
        return getattr(self, f"_{stage}")()

    def _lengths(self, dataset: str, split: str, measured) -> Lengths:
        return lengths(self.config.datasets[dataset], split, self.study.max_length, measured)

    def _asked(self) -> list[tuple[str, float, float, float]]:
        """(what, prompts, tokens a prompt, most new tokens) of each generated evaluation."""
        spec, found = self.study.evaluation, []
        alpaca = spec.alpaca_eval if spec.alpaca_eval and spec.alpaca_eval.judge else None
        for what, one in (("IF-Eval", spec.ifeval), ("GSM8K", spec.gsm8k), ("AlpacaEval", alpaca)):
            if one is None:
                continue
            dataset = self.config.datasets[one.dataset]
            splits = [lengths(dataset, split, float("inf"), {}) for split in dataset.sizes if split in ("test", "ood")]
            rows = sum(split.rows for split in splits)
            prompt = sum(split.rows * split.prompt for split in splits) / max(rows, 1)
            if what == "GSM8K" and one.num_fewshot:
                shots = self.config.datasets[one.fewshot_dataset or one.dataset]
                if "train" in shots.sizes:
                    prompt += one.num_fewshot * lengths(shots, "train", float("inf"), {}).tokens
            found.append((what, rows, prompt, one.max_new_tokens))
        return found

    # What a pass, a training, an evaluation needs.

    def _pass(self, data: list[Lengths], rank: int, head_products: float = 1.0) -> float:
        """FLOPs of one forward pass of inference, with the head over response tokens."""
        step = self._step(data, rank)
        return flops(self.architecture, step).forward + (
            head_products * step.response_tokens * self.architecture.head_product
        )

    def _step(self, data: list[Lengths], rank: int, repeats: float = 1.0, padding: float = 1.0, **more) -> Step:
        """All tokens of the data as one step: costs are linear in them."""
        return Step(
            padded_tokens=repeats * padding * _tokens(data),
            response_tokens=repeats * sum(one.rows * one.response for one in data),
            attended=repeats * padding**2 * sum(one.rows * one.squares for one in data) / 2,
            lora_rank=rank,
            **more,
        )

    def _training(self, rank: int, **step) -> tuple[float, Flops]:
        """Tokens of a training, and its FLOPs."""
        epochs = self.study.train.epochs
        whole = self._step([self.train_data], rank, epochs, PADDING, records_losses=True, **step)
        return epochs * _tokens([self.train_data]), flops(self.architecture, whole)

    def _trained(self, rank: int, flop: float, tokens: float, **disk: float) -> Work:
        adapter = 4 * self._adapter(rank)
        # Weights and two moments; the last checkpoint goes once the next is whole.
        passing = {"checkpoints": 2 * 3 * adapter}
        return Work(tokens, {"train": flop}, {"adapter": adapter, **disk}, self._training_memory(rank), passing)

    def _adapter(self, rank: int) -> int:
        """Numbers of a LoRA adapter."""
        return self.architecture.layers * rank * sum(i + o for i, o in self.architecture.matrices)

    def _weights(self, precision: str) -> dict[str, float]:
        size = self.machine.at(precision).itemsize
        return {"process": PROCESS_BYTES, "weights": self.architecture.parameters * size}

    def _training_memory(self, rank: int) -> dict[str, float]:
        """Of a micro-batch of the longest texts there may be."""
        model, train = self.architecture, self.study.train
        rows, length = train.micro_batch_size or train.batch_size, self.study.max_length
        features = sum(i + o for i, o in model.matrices)
        parts = {
            **self._weights(self.study.precision.training),
            "adapter, gradients, optimiser": OPTIMISER_BYTES * self._adapter(rank),
            "activations": rows * length * model.layers * features * SAVED_COPIES * self.machine.itemsize,
            "logits": 2 * CHUNK_BYTES,
        }
        if model.attention == "eager":
            # Probabilities in the model's dtype and, from the softmax, in float32.
            square = rows * model.heads * length**2 * model.layers
            parts["attention's squares"] = square * (self.machine.itemsize + 4)
        return parts

    def _inference_memory(self, precision: str) -> dict[str, float]:
        model, size = self.architecture, self.machine.at(precision).itemsize
        a_token = (2 * model.intermediate + 6 * model.hidden) * size
        # A text that is longer than a batch is one by itself.
        tokens = max(self.machine.batch_tokens, min(self.study.max_length, 2 * self.machine.batch_tokens))
        return {
            **self._weights(precision),
            "adapter": size * self._adapter(self.study.train.lora.rank),
            "batches under way": self.machine.at_once * (2 * CHUNK_BYTES + tokens * a_token),
        }

    # Stages.

    def _model(self, name: str) -> Work:
        spec, sizes = self.config.models[name], self.sizes[name]
        if sizes is None:
            return Work(flop=None)
        parameters = sizes.architecture.parameters
        disk = {"weights": parameters * sizes.stored_bytes}
        passing = {"the hub's cache": parameters * sizes.stored_bytes} if spec.source == "hub" else {}
        # A GGUF file is unpacked to float32 before it becomes bfloat16.
        in_memory = 6 if spec.source in ("gguf", "wheel") else sizes.stored_bytes
        return Work(disk=disk, memory={"process": PROCESS_BYTES, "weights": parameters * in_memory}, passing=passing)

    def _dataset(self, spec: DatasetSpec) -> Work:
        tokens = sum(one.rows * one.tokens for one in (lengths(spec, s, float("inf"), {}) for s in spec.sizes))
        return Work(disk={"examples": TABLE_BYTES["examples"] * tokens}, memory={"process": PROCESS_BYTES})

    def _tokens_alone(self, stage: str) -> float:
        if stage in ("baseline_teacher", "student"):
            return self.study.train.epochs * _tokens([self.train_data])
        samples = self.study.uncertainty.samples
        passes = {"token_losses": 2, "token_uncertainty": samples}.get(stage, 0)
        return passes * _tokens(self.data)

    def _baseline_teacher(self) -> Work:
        rank = self.study.train.lora.rank
        tokens, work = self._training(rank)
        return self._trained(rank, work.total, tokens)

    def _token_losses(self) -> Work:
        rank, rows = self.study.train.lora.rank, sum(one.rows * one.response for one in self.data)
        work = {"score": self._pass(self.data, rank) + self._pass(self.data, 0)}
        disk = {"token_losses": TABLE_BYTES["token_losses"] * rows}
        precision = self.study.precision.tables
        return Work(2 * _tokens(self.data), work, disk, self._inference_memory(precision), precision=precision)

    def _teacher_hidden(self) -> Work:
        """By the pass of `token_losses`, or one of its own; mean embeddings take two more products with the head."""
        precision = self.study.precision.training
        if self.online_because is not None:
            return Work(memory=self._inference_memory(precision))
        response = self.train_data.rows * self.train_data.response
        work = 0.0 if self.softcapped else 2 * response * self.architecture.head_product
        tokens = 0.0
        if "token_losses" in self.fresh or self.machine.at(precision).precision != self._tables_machine().precision:
            tokens = _tokens(self.data)
            work += self._pass(self.data, self.study.train.lora.rank)
        disk = {"teacher_hidden": self._cache_bytes()}
        return Work(tokens, {"score": work}, disk, self._inference_memory(precision), precision=precision)

    def _tables_machine(self) -> Machine:
        return self.machine.at(self.study.precision.tables)

    def _cache_bytes(self) -> float:
        sizes = self.architecture.cache_bytes(self.machine.itemsize)
        a_token = sizes["hidden_states"] + (0 if self.softcapped else sizes["mean_embeddings"])
        return self.train_data.rows * self.train_data.response * a_token

    def _over_budget(self) -> str | None:
        """Why students run the teacher online; None where its states are cached."""
        if self.study.teacher_states == "online":
            return "the study says so"
        if (
            self.architecture is None
            or self.machine is None
            or self._cache_bytes() <= self.study.teacher_cache_gigabytes * 1e9
        ):
            return None
        budget = self.study.teacher_cache_gigabytes
        return f"the cache would take {self._cache_bytes() / 1e9:.0f} GB, and its budget is {budget:g} GB"

    def _token_uncertainty(self) -> Work:
        samples, rows = self.study.uncertainty.samples, sum(one.rows * one.response for one in self.data)
        states = self.machine.batch_tokens * samples * self.architecture.hidden * FLOAT32_BYTES
        memory = {**self._inference_memory(BALD_PRECISION), "samples": self.machine.at_once * min(STATES_BYTES, states)}
        work = {"score": samples * self._pass(self.data, self.study.train.lora.rank)}
        disk = {"token_uncertainty": TABLE_BYTES["token_uncertainty"] * rows}
        return Work(samples * _tokens(self.data), work, disk, memory, precision=BALD_PRECISION)

    def _evaluation(self, rank: int | None = None) -> Work:
        rank = self.study.train.lora.rank if rank is None else rank
        model, precision = self.architecture, self.study.precision.tables
        size = self.machine.at(precision).itemsize
        tokens, work = _tokens(self.held_out), {"score": self._pass(self.held_out, rank), "generate": 0.0}
        disk = TABLE_BYTES["evaluation_tokens"] * sum(one.rows * one.response for one in self.held_out)
        generating = 0.0
        generators = (self.study.evaluation.ifeval, self.study.evaluation.gsm8k, self.study.evaluation.alpaca_eval)
        batch = max((one.batch_size for one in generators if one), default=0)
        for _, rows, prompt, new in self.asked:
            read = Step(rows * prompt, 0, rows * prompt**2 / 2, lora_rank=rank)
            write = Step(rows * new, rows * new, rows * (new * prompt + new**2 / 2), lora_rank=rank)
            work["score"] += flops(model, read).forward
            work["generate"] += flops(model, write).forward + rows * new * model.head_product
            tokens += rows * (prompt + new)
            disk += TABLE_BYTES["answers"] * rows * (prompt + new)
            cache = (prompt + new) * model.layers * 2 * model.kv_heads * model.head_dim
            activations = prompt * (2 * model.intermediate + 6 * model.hidden)
            logits = 8 * model.vocabulary
            generating = max(generating, min(batch, rows) * ((cache + activations) * size + logits))
        memory = {**self._inference_memory(precision), "answers under way": generating}
        return Work(tokens, work, {"evaluation tables": disk}, memory, precision=precision)

    def _reference_evaluation(self) -> Work:
        base, teacher = self._evaluation(0), self._evaluation()
        work = {kind: base.flop[kind] + teacher.flop[kind] for kind in base.flop}
        disk = {name: 2 * size for name, size in teacher.disk.items()}
        return Work(2 * teacher.tokens, work, disk, teacher.memory, precision=teacher.precision)

    def _student(self, ablation: AblationSpec) -> Work:
        lora, train = ablation.lora.of(self.study.train.lora), self.study.train
        tokens, work = self._training(lora.rank, **self.shares(ablation))
        fractions = [fraction for fraction in self.study.curriculum.fractions if 0 < fraction < 1]
        adapter = 4 * self._adapter(lora.rank)
        rows = train.epochs * self.train_data.rows * self.train_data.response
        selections = TABLE_BYTES["selections"] * rows
        return self._trained(lora.rank, work.total, tokens, snapshots=len(fractions) * adapter, selections=selections)

    def shares(self, ablation: AblationSpec) -> dict:
        """What of a `Step` the ablation decides."""
        share = selected_share(ablation.select)
        parts = ((share, ablation.selected), (1 - share, ablation.rest))
        distilled = sum(part for part, objective in parts if objective.kind == "distill")
        idle = sum(part for part, objective in parts if objective.kind == "none")
        needs_loss = ablation.needs_student_losses
        train = self.study.train
        several = (train.micro_batch_size or train.batch_size) < train.batch_size
        return {
            "mle_share": max(0.0, 1 - distilled - idle),
            "distilled_share": distilled,
            "selection_needs_loss": needs_loss,
            "selection_passes": float(needs_loss and several),
            "teacher": self._teacher_form(ablation) if distilled else "none",
        }

    def _teacher_form(self, ablation: AblationSpec) -> str:
        if ablation.distils_from != "baseline" or self.online_because is not None:
            return "online"
        linear = ablation.can_use_mean_embeddings and not self.softcapped
        return "mean_embeddings" if linear else "hidden_states"

    def _curriculum(self, ablation: AblationSpec) -> Work:
        spec, rank = self.study.curriculum, ablation.lora.of(self.study.train.lora).rank
        few = self.validation
        sample = [Lengths(min(spec.examples, few.rows), few.tokens, few.response, few.squares, few.origin)]
        passes = len(set(spec.fractions)) * (1 + spec.samples)
        work, memory = {"score": passes * self._pass(sample, rank)}, self._inference_memory(BALD_PRECISION)
        return Work(passes * _tokens(sample), work, memory=memory, precision=BALD_PRECISION)


def selected_share(select: SelectSpec) -> float:
    """Of the response tokens, those that are selected; half where only training shows it."""
    if select.takes_all:
        return 1.0
    if isinstance(select.quantile, Schedule):
        return (select.quantile.start + select.quantile.end) / 2
    return 0.5 if select.quantile is None else select.quantile


def _tokens(data: list[Lengths]) -> float:
    return sum(one.rows * one.tokens for one in data)
