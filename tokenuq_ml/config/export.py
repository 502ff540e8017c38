"""Exported models: the entries of `exports.yaml`, a file that a configuration folder need not have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tokenuq_ml.config.base import BASE_ROW, Spec, check_name
from tokenuq_ml.config.entries import checked_entry, read_entries
from tokenuq_ml.config.study import StudySpec
from tokenuq_ml.errors import InputError

FILE = "exports.yaml"
TEACHER = "baseline_teacher"
"""How an export names the study's teacher."""
ExportKind = Literal["merged", "gguf"]
ExportDtype = Literal["auto", "float32", "bfloat16", "float16"]


class ExportSpec(Spec):
    """One trained model of a study, written in a format that other programs load."""

    name: Annotated[str, AfterValidator(check_name)] = Field(description="the entry's key")
    study: str = Field(description="an entry of studies.yaml")
    ablation: str = Field(description=f"an ablation of the study, or {TEACHER}")
    kind: ExportKind = Field(
        default="merged", description="merged: a folder that transformers loads; gguf: a file for llama.cpp"
    )
    dtype: ExportDtype = Field(default="auto", description="of the weights; auto: as the base model is stored")
    schedule: str | None = Field(
        default=None, description="a cron expression: when to export again if the model has changed"
    )

    def fields(self) -> dict[str, Any]:
        """Return this spec as plain JSON values, without `schedule`, which changes no result."""
        fields = super().fields()
        del fields["schedule"]
        return fields

    @property
    def is_of_teacher(self) -> bool:
        """Whether the model is the study's teacher."""
        return self.ablation == TEACHER


def problem_with(spec: ExportSpec, studies: Mapping[str, StudySpec]) -> str | None:
    """Return what is wrong with the model that an export names, as `<key>: <sentence>`; None if nothing is."""
    if spec.study not in studies:
        return f"study: {spec.study!r} is not in studies.yaml; allowed: {', '.join(studies) or 'none'}"
    ablations = studies[spec.study].ablations
    allowed = f"allowed: {', '.join((*ablations, TEACHER))}"
    if spec.ablation == BASE_ROW:
        return f"ablation: {BASE_ROW!r} is the base model, of which no training is exported; {allowed}"
    if spec.ablation not in (*ablations, TEACHER):
        return f"ablation: {spec.study} has no ablation {spec.ablation!r}; {allowed}"
    return None


def read_exports(folders: Sequence[Path], studies: Mapping[str, StudySpec]) -> dict[str, ExportSpec]:
    """Return the checked entries of `exports.yaml` in all folders, by name.

    Args:
        folders: of the configuration.
        studies: every study, by name.

    Raises:
        InputError: an entry is invalid, or names a study or ablation that does not exist.
    """
    found: dict[str, ExportSpec] = {}
    for path, name, raw in read_entries(folders, FILE):
        found[name] = checked_entry(ExportSpec, path, name, raw)
        if problem := problem_with(found[name], studies):
            raise InputError(f"{path}: {name}.{problem}")
    return found
