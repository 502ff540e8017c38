"""Child process of `<study>/uncertainty_estimates`: BALD of every response token by further estimators, and their cost.

Only studies that name estimators have this asset. Everything is measured in float32, in one process.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
from peft import PeftModel

from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.config.estimators import ENSEMBLE, ESTIMATORS, LAPLACE_ESTIMATORS, column_of, posterior_bytes
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.stored_examples import StoredExamples, read_examples
from tokenuq_ml.models.adapters import TrainedModel, attach_adapter, use_adapter
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.progress import Progress
from tokenuq_ml.scoring.adapter_ensemble import ensemble_uncertainty, shared_head
from tokenuq_ml.scoring.last_layer_laplace import (
    HeadPosterior,
    check_laplace,
    head_posterior,
    laplace_uncertainty,
)
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.adapted_model import TEACHER_ADAPTER, AdaptedModel
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.losses_and_states import stored_shards
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.tables.estimate_schemas import BALD_COLUMNS
from tokenuq_ml.tables.parquet import TableWriter, write_table
from tokenuq_ml.tables.schemas import TABLES, TOKEN_KEY

STAGE, COSTS = "uncertainty_estimates", "estimator_costs"
_MEMBER = "adapter/"
"""What the names of inputs begin with that are further teachers."""
Measure = Callable[[list[TokenizedExample]], pl.DataFrame]


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the outputs `uncertainty_estimates` and `estimator_costs`."""
    teacher = AdaptedModel(
        request.inputs["model"], request.inputs["adapter"], TEACHER_ADAPTER, settings=request.base_settings
    )
    model, numerics = teacher.for_bald()
    context = StageContext(STAGE, request, reporter, numerics)
    fields = context.asset.fields["uncertainty"]
    spec = UncertaintySpec(**fields)
    estimating = _Estimating(context, model, numerics, spec)
    with use_adapter(model, TEACHER_ADAPTER), TableWriter(STAGE, context.output(STAGE), **context.asset.stamp) as table:
        measures = estimating.prepared()
        for shard in stored_shards(context.input("tokenized_dataset"), numerics):
            table.append(_rows(shard, measures))
    costs = pl.DataFrame(list(estimating.costs.values()), schema=_cost_schema())
    # Times differ between runs, so that the data version is that of the other table.
    write_table(costs, COSTS, context.output(COSTS), **context.asset.stamp)
    means = pl.scan_parquet(table.path).select(
        pl.col(column_of(name)).mean().name.prefix("mean_") for name in spec.measured
    )
    figures = means.collect(engine="streaming").to_dicts()[0]
    seconds = {f"seconds_{name}": cost["seconds"] for name, cost in estimating.costs.items()}
    context.done(table.digest, {**figures, **seconds})


def _cost_schema() -> pl.Schema:
    empty = pl.DataFrame(TABLES[COSTS].schema.empty_table())
    return pl.Schema({name: empty.schema[name] for name in TABLES[COSTS].columns})


def _rows(shard: list[TokenizedExample], measures: Mapping[str, Measure]) -> pl.DataFrame:
    """Return the rows of `uncertainty_estimates` of a shard: null for estimators that are not measured."""
    rows = None
    for name, measure in measures.items():
        found = measure(shard).select(*TOKEN_KEY, pl.col("bald").cast(pl.Float32).alias(column_of(name)))
        rows = found if rows is None else rows.join(found, on=TOKEN_KEY, validate="1:1")
    assert rows is not None
    absent = (pl.lit(None, pl.Float32).alias(name) for name in BALD_COLUMNS if name not in rows.columns)
    return rows.with_columns(absent).select(*TOKEN_KEY, *BALD_COLUMNS).sort(*TOKEN_KEY)


@dataclass
class _Estimating:
    """Measures a study's estimators, and counts what each of them costs."""

    context: StageContext
    model: TrainedModel
    numerics: Numerics
    spec: UncertaintySpec

    def __post_init__(self) -> None:
        dataset = self.context.input("tokenized_dataset")
        tokens, train = 0, 0
        for example in StoredExamples(dataset):
            tokens += len(example.input_ids)
            train += len(example.input_ids) if example.split == "train" else 0
        self.train_share = train / tokens if tokens else 0.0
        self.costs = {name: self._cost(name) for name in self.spec.measured}
        passes = sum(cost["forward_passes"] for cost in self.costs.values())
        self.progress: Progress = self.context.progress(round(passes * tokens))

    def prepared(self) -> dict[str, Measure]:
        """Return what measures each estimator, after whatever it needs once.

        What would be refused is refused before anything is measured.
        """
        if ENSEMBLE in self.spec.measured:
            members = self._attached()
        for name in self.spec.measured:
            if name in LAPLACE_ESTIMATORS:
                head = head_of(self.model)
                check_laplace(name, head, self.spec.samples)
                self.costs[name]["bytes"] = posterior_bytes(name, head.vocabulary, head.features, self.spec.samples)
        measures: dict[str, Measure] = {}
        for name in self.spec.measured:
            if name == ENSEMBLE:
                measures[name] = self._timed(name, self._by_ensemble(members))
            elif name in LAPLACE_ESTIMATORS:
                measures[name] = self._timed(name, self._by_laplace(self._posterior(name)))
            else:
                measures[name] = self._timed(name, self._by_dropout(ESTIMATORS[name].dropout))
        return measures

    def _cost(self, name: str) -> dict:
        """Return the row of `estimator_costs` before anything is measured."""
        samples = self.spec.members if name == ENSEMBLE else self.spec.samples
        passes = 1 + self.train_share if name in LAPLACE_ESTIMATORS else float(samples)
        return {
            "estimator": name,
            "samples": samples,
            "trainings": samples - 1 if name == ENSEMBLE else 0,
            "forward_passes": passes,
            "head_products": float(samples),
            "seconds": 0.0,
            "bytes": 0,
            "prior_precision": None,
        }

    @contextmanager
    def _timing(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.costs[name]["seconds"] += time.perf_counter() - started

    def _timed(self, name: str, measure: Measure) -> Measure:
        def timed(shard: list[TokenizedExample]) -> pl.DataFrame:
            with self._timing(name):
                return measure(shard)

        return timed

    def _by_dropout(self, rate: float | None) -> Measure:
        spec = self.spec.model_copy(update={"dropout": rate})
        return lambda shard: token_uncertainty(self.model, shard, spec, self.numerics, self.progress.add)

    def _attached(self) -> list[str]:
        """Attach the further teachers to the model, and return the names of all members."""
        names = [TEACHER_ADAPTER]
        for name, folder in self.context.request.inputs.items():
            if name.startswith(_MEMBER):
                names.append(name.removeprefix(_MEMBER))
                attach_adapter(self.model, folder, names[-1])
        sizes = {path: one.numel() * one.element_size() for path, one in self.model.named_parameters()}
        if isinstance(self.model, PeftModel):
            added = sum(size for path, size in sizes.items() if any(f".{name}." in path for name in names[1:]))
        else:
            added = sum(sizes.values()) * len(names[1:])
        self.costs[ENSEMBLE]["bytes"] = added
        shared_head(self.model, names)
        return names

    def _by_ensemble(self, members: list[str]) -> Measure:
        return lambda shard: ensemble_uncertainty(self.model, members, shard, self.numerics, self.progress.add)

    def _posterior(self, name: str) -> HeadPosterior:
        """Fit the output layer's posterior to the train split."""
        train = read_examples(self.context.input("tokenized_dataset"), ["train"])
        with self._timing(name):
            posterior = head_posterior(name, self.model, train, self.spec, self.numerics, self.progress.add)
        self.costs[name]["prior_precision"] = posterior.prior_precision
        self.context.reporter.info(
            f"{self.context.name}: {name}: prior precision {posterior.prior_precision:.4g} by the marginal likelihood "
            f"of {posterior.tokens:,} tokens"
        )
        return posterior

    def _by_laplace(self, posterior: HeadPosterior) -> Measure:
        return lambda shard: laplace_uncertainty(self.model, posterior, shard, self.numerics, self.progress.add)


if __name__ == "__main__":
    runner.main(run)
