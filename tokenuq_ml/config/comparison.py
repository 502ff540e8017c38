"""A comparison of studies: one page over several of them; the entries of `comparisons.yaml`.

Each kind of comparison has its options, and names what it reads of each study. `reports/comparisons/` computes them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenuq_ml.config.ablation import AblationSpec
from tokenuq_ml.config.base import Spec, Split, check_name
from tokenuq_ml.config.evaluation import EvaluationSpec
from tokenuq_ml.config.families import settings_of
from tokenuq_ml.config.study import StudySpec
from tokenuq_ml.config.sweeps import suffix

FURTHER = "further.json"
"""File of a comparison that asks for more: study -> ablations."""
Quantile = Annotated[float, Field(gt=0, lt=1)]


class ComparisonSpec(Spec):
    """What every kind of comparison has. A kind is a subclass that is in `KINDS`."""

    READS_REPORT: ClassVar[bool] = False
    """Reads `ablation_report` of each study, and so waits for all of it."""
    STUDY_TABLES: ClassVar[tuple[str, ...]] = ()
    """Tables of each study that the kind reads: `uncertainty_analysis`, `token_losses`, ..."""
    STUDY_TABLES_WITH_TRUTH: ClassVar[tuple[str, ...]] = ()
    """Further ones of studies whose truth is known: `truth_ranking`, `token_truth`, ..."""
    ABLATION_TABLES: ClassVar[tuple[str, ...]] = ()
    """Tables of each ablation: `evaluation_examples`, `selections`, `curriculum`, ..."""
    REFERENCE_TABLES: ClassVar[tuple[str, ...]] = ()
    """Tables of the base model and of the teacher: `evaluation_examples`, ..."""
    NEEDS_KNOBS: ClassVar[bool] = False
    """Reads the knobs of each study, which is a cell of a `grid`."""
    OPTIONAL_ABLATIONS: ClassVar[bool] = False
    """Reads the ablations that exist. What was never made is left out; its families have fewer seeds, or are absent."""

    name: Annotated[str, AfterValidator(check_name)] = Field(description="the entry's key")
    kind: str = Field(description="which comparison")
    studies: tuple[str, ...] = Field(description="names in studies.yaml; one with a `grid` stands for all its cells")
    bootstrap: Annotated[int, Field(gt=0, description="bootstrap resamples per interval")] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1, description="of the intervals")] = 0.95
    seed: Annotated[int, Field(description="of the resamples")] = 0

    @property
    def intervals(self) -> EvaluationSpec:
        """Return how intervals are computed, as functions of `evaluation/` take it."""
        return EvaluationSpec(bootstrap=self.bootstrap, confidence=self.confidence, seed=self.seed)

    def ablations_read(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> tuple[str, ...]:
        """Return the ablations of a study whose `ABLATION_TABLES` the comparison reads: all of them.

        Args:
            study: one of `studies`.
            ablations: every ablation, by name.
        """
        return study.ablations if self.ABLATION_TABLES else ()

    def optional_ablations(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> frozenset[str]:
        """Return those of `ablations_read` that the comparison does without as long as they were not made.

        Args:
            study: one of `studies`.
            ablations: every ablation, by name.
        """
        return frozenset(self.ablations_read(study, ablations) if self.OPTIONAL_ABLATIONS else ())

    def problem_with(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> str | None:
        """Return what a study lacks that the comparison needs, with the remedy; None if nothing.

        Args:
            study: one of `studies`.
            ablations: every ablation, by name.
        """
        return None

    @model_validator(mode="after")
    def _check_studies(self) -> Self:
        if not self.studies:
            raise ValueError("'studies' is empty: name at least one")
        if len(set(self.studies)) < len(self.studies):
            raise ValueError("'studies' names a study twice; remove one")
        return self


class FamilyComparison(ComparisonSpec):
    """A comparison of families of ablations with a baseline, each at the setting that its study's report has chosen."""

    READS_REPORT: ClassVar[bool] = True
    ABLATION_TABLES: ClassVar[tuple[str, ...]] = ("evaluation_examples",)

    baseline: str = Field(default="mle", description="family that the others are compared with")

    def problem_with(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> str | None:
        """Return that the study lacks the baseline, or has nothing to compare with it."""
        families = settings_of({name: ablations[name] for name in study.ablations})
        if self.baseline not in families:
            return (
                f"study {study.name} has no family {self.baseline!r}, which is the baseline; it has "
                f"{', '.join(families)}; add it to the study's ablations, or set 'baseline'"
            )
        if len(families) == 1:
            return f"study {study.name} has no family but the baseline {self.baseline!r}; add ablations to it"
        return None


class FrontComparison(FamilyComparison):
    """Families in distribution against out of distribution, and which are on the Pareto front of every study."""

    kind: Literal["front"]


class ThresholdsComparison(FamilyComparison):
    """The quantile of the selection against the data set."""

    kind: Literal["thresholds"]
    families: tuple[str, ...] = Field(
        default=("masked_mle_top", "paper_top"), description="entries of ablations.yaml, without the quantile"
    )
    quantiles: tuple[Quantile, ...] = Field(default=(0.1, 0.25, 0.5, 0.75), description="selected shares to compare")

    @staticmethod
    def family_at(entry: str, quantile: float) -> str:
        """Return the family of an entry's sweep at a quantile: `paper_top25`."""
        return entry + suffix(entry, "quantile", quantile)

    def ablations_read(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> tuple[str, ...]:
        """Return the ablations of the baseline, and of the families at the quantiles."""
        wanted = {self.baseline, *(self.family_at(entry, one) for entry in self.families for one in self.quantiles)}
        return tuple(name for name in study.ablations if ablations[name].family in wanted)

    def problem_with(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> str | None:
        """Return that the study lacks the baseline, or has no objective at two of the quantiles."""
        if problem := super().problem_with(study, ablations):
            return problem
        families = {ablations[name].family for name in study.ablations}
        wanted = {entry: [self.family_at(entry, one) for one in self.quantiles] for entry in self.families}
        if all(sum(name in families for name in names) < 2 for names in wanted.values()):
            listed = ", ".join(name for names in wanted.values() for name in names)
            return f"study {study.name} has no objective at two of the quantiles; add some of {listed} to its ablations"
        return None

    @model_validator(mode="after")
    def _check_curves(self) -> Self:
        if not self.families:
            raise ValueError("'families' is empty: name at least one")
        if len(set(self.quantiles)) < max(2, len(self.quantiles)):
            raise ValueError("'quantiles' needs at least two, each once")
        return self


class PhaseDiagramComparison(FamilyComparison):
    """Where on a grid of knobs each family beats the baseline; seeds are added in rounds until that is decided."""

    READS_REPORT: ClassVar[bool] = False
    NEEDS_KNOBS: ClassVar[bool] = True
    STUDY_TABLES: ClassVar[tuple[str, ...]] = ("token_losses", "token_uncertainty")
    REFERENCE_TABLES: ClassVar[tuple[str, ...]] = ("evaluation_examples",)
    OPTIONAL_ABLATIONS: ClassVar[bool] = True

    kind: Literal["phase_diagram"]
    rounds: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(5, 7, 10), description="seeds of a family at each look; one that is decided gets no further seeds"
    )
    margin: Annotated[
        float, Field(ge=0, lt=1, description="share of the baseline's divergence that counts as no difference")
    ] = 0.1

    def seeds_of(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> dict[str, list[str]]:
        """Return family -> its ablations by seed, as many as the last round has."""
        found: dict[str, list[str]] = {}
        for name in sorted(study.ablations, key=lambda one: ablations[one].seed):
            found.setdefault(ablations[name].family, []).append(name)
        families = dict.fromkeys(ablations[name].family for name in study.ablations)
        return {family: found[family][: self.rounds[-1]] for family in families}

    def ablations_read(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> tuple[str, ...]:
        """Return the seeds of all rounds."""
        return tuple(name for names in self.seeds_of(study, ablations).values() for name in names)

    def optional_ablations(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> frozenset[str]:
        """Return the seeds after the first round: whether they are needed is known once that was looked at."""
        seeds = self.seeds_of(study, ablations).values()
        return frozenset(name for names in seeds for name in names[self.rounds[0] :])

    def problem_with(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> str | None:
        """Return that families cannot be compared, or have fewer seeds than the last round."""
        families = settings_of({name: ablations[name] for name in study.ablations})
        for family, settings in families.items():
            if len(settings) > 1:
                return (
                    f"study {study.name} trains {family} at {len(settings)} settings, and this kind compares families "
                    "at one; remove 'sweep', or all settings but one"
                )
            for names in settings.values():
                if len(names) < self.rounds[-1]:
                    return (
                        f"study {study.name} has {len(names)} seeds of {family}, and 'rounds' ends with "
                        f"{self.rounds[-1]}; set `seeds: {self.rounds[-1]}` of the study, or lower 'rounds'"
                    )
        if not study.ood:
            return f"study {study.name} has no dataset in 'ood'; add one of its language's other world"
        return super().problem_with(study, ablations)

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if not self.rounds or list(self.rounds) != sorted(set(self.rounds)):
            listed = ", ".join(map(str, self.rounds))
            raise ValueError(f"'rounds' are numbers of seeds that rise from look to look, are {listed or 'none'}")
        return self


class CorrelationsComparison(ComparisonSpec):
    """Correlations of loss, entropy and BALD per token, over architectures. Needs no ablation."""

    STUDY_TABLES: ClassVar[tuple[str, ...]] = ("token_losses", "token_uncertainty")
    STUDY_TABLES_WITH_TRUTH: ClassVar[tuple[str, ...]] = ("truth_ranking",)

    kind: Literal["correlations"]
    split: Literal["all"] | Split = Field(default="all", description="the tokens that are compared: of a split, or all")

    def problem_with(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> str | None:
        """Return that the study scores no tokens of the split."""
        if self.split == "ood" and not study.ood:
            return f"study {study.name} has no tokens of split 'ood': set its 'ood', or another 'split' here"
        return None


class CurriculaComparison(FamilyComparison):
    """Explicit curricula against the automatic one, which follows from the student's own losses."""

    ABLATION_TABLES: ClassVar[tuple[str, ...]] = ("evaluation_examples", "curriculum")

    kind: Literal["curricula"]
    baseline: str = Field(default="paper_top25", description="family of the automatic curriculum")
    curricula: tuple[str, ...] = Field(
        default=("quantile_anneal", "quantile_adaptive", "complexity_curriculum", "rank_growth"),
        description="families of the explicit ones",
    )
    without: tuple[str, ...] = Field(
        default=("mle",), description="families without a curriculum, compared for orientation"
    )

    def ablations_read(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> tuple[str, ...]:
        """Return the ablations of all families that are compared."""
        wanted = {self.baseline, *self.curricula, *self.without}
        return tuple(name for name in study.ablations if ablations[name].family in wanted)

    def problem_with(self, study: StudySpec, ablations: Mapping[str, AblationSpec]) -> str | None:
        """Return that the study lacks the automatic curriculum, or has no explicit one."""
        if problem := super().problem_with(study, ablations):
            return problem
        if not {ablations[name].family for name in study.ablations} & set(self.curricula):
            listed = ", ".join(self.curricula)
            return f"study {study.name} has no explicit curriculum; add some of {listed} to its ablations"
        return None

    @model_validator(mode="after")
    def _check_families(self) -> Self:
        if not self.curricula:
            raise ValueError("'curricula' is empty: name at least one")
        every = [self.baseline, *self.curricula, *self.without]
        if len(set(every)) < len(every):
            raise ValueError("'baseline', 'curricula' and 'without' name a family twice; remove one")
        return self


KINDS: dict[str, type[ComparisonSpec]] = {
    "front": FrontComparison,
    "thresholds": ThresholdsComparison,
    "phase_diagram": PhaseDiagramComparison,
    "correlations": CorrelationsComparison,
    "curricula": CurriculaComparison,
}
"""Value of `kind` -> the options of that kind."""


def spec_class_of(entry: Mapping[str, Any]) -> type[ComparisonSpec]:
    """Return the class that validates an entry.

    Raises:
        ValueError: the entry has no `kind`, or an unknown one.
    """
    if "kind" not in entry:
        raise ValueError(f"kind: missing; allowed: {', '.join(KINDS)}")
    kind = entry["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind: unknown kind {kind!r}; allowed: {', '.join(KINDS)}")
    return KINDS[kind]
