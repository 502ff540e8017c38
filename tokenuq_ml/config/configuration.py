"""The configuration: every entry of its files, and what a study needs of the others."""

from dataclasses import dataclass, field

from tokenuq_ml.config import AblationSpec, DatasetSpec, ModelSpec, StudySpec
from tokenuq_ml.config.comparison import ComparisonSpec
from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.config.grids import Grids
from tokenuq_ml.config.truth import LANGUAGE


@dataclass(frozen=True)
class Config:
    """Every entry of the files, by name."""

    models: dict[str, ModelSpec]
    datasets: dict[str, DatasetSpec]
    studies: dict[str, StudySpec]
    ablations: dict[str, AblationSpec]
    comparisons: dict[str, ComparisonSpec] = field(default_factory=dict)
    grids: Grids = field(default_factory=dict)
    """Entry of studies.yaml with a `grid` -> its cells, which are in `studies`, and the knobs of each."""
    exports: dict[str, ExportSpec] = field(default_factory=dict)

    def studies_of(self, name: str) -> tuple[str, ...]:
        """Return the studies that a name stands for: itself, or the cells of an entry with a grid; none if unknown."""
        return tuple(self.grids.get(name, (name,) if name in self.studies else ()))

    @property
    def study_names(self) -> list[str]:
        """The names in studies.yaml: cells of a `grid` are left out, and its entry is one."""
        cells = {cell for grid in self.grids.values() for cell in grid}
        return [*(name for name in self.studies if name not in cells), *self.grids]

    def evaluation_datasets(self, study: StudySpec) -> list[str]:
        """Return the datasets that the study's evaluations name, in addition to `ood`."""
        return list(dict.fromkeys(study.evaluation.datasets.values()))

    def evaluation_models(self, study: StudySpec) -> list[str]:
        """Return the models that the study only evaluates with, as judges."""
        return list(dict.fromkeys(study.evaluation.judge_models.values()))

    def models_of(self, study: StudySpec) -> list[str]:
        """Return every model that the study needs; the first is the one that it trains."""
        return list(dict.fromkeys((study.model, *self.evaluation_models(study))))

    def datasets_of(self, study: StudySpec) -> list[str]:
        """Return every dataset that the study needs: for training, then `ood`, for evaluations, for pre-training.

        Datasets that another one is made of stand before it.
        """
        needed: list[str] = []
        models = (self.models.get(name) for name in self.models_of(study))
        languages = [model.language for model in models if model and model.language]
        for name in dict.fromkeys((study.dataset, *study.ood, *self.evaluation_datasets(study), *languages)):
            needed += [one for one in self.with_sources(name) if one not in needed]
        return needed

    def has_truth(self, study: StudySpec) -> bool:
        """Return whether true distributions of the study's tokens are known: some of its data are a language's."""
        return any(self.datasets[name].format == LANGUAGE for name in (study.dataset, *study.ood))

    def with_sources(self, dataset: str) -> list[str]:
        """Return the datasets that a dataset is made of, those that they are made of, and itself, in that order."""
        found: list[str] = []
        spec = self.datasets.get(dataset)
        for name in spec.made_of if spec else ():
            found += [one for one in self.with_sources(name) if one not in found]
        return [*found, dataset]
