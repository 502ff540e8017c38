"""The model card of an exported model: its README.md, from the manifest, the configuration and the evaluations.

Does not import torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from tokenuq_ml.config import AblationSpec, StudySpec
from tokenuq_ml.config.ablation_text import ablation_sentence
from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.export.card_entries import entries, with_ablation
from tokenuq_ml.export.card_figures import Figure, as_table

UNKNOWN = "unknown"
PAPER = "https://arxiv.org/abs/2503.16511"
HUB_LICENSES = frozenset(
    "apache-2.0 mit bsd-2-clause bsd-3-clause bsd-3-clause-clear cc0-1.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 "
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0 cc-by-nd-4.0 gemma llama2 llama3 llama3.1 "
    "llama3.2 llama3.3 llama4 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 openrail creativeml-openrail-m bigscience-openrail-m "
    "bigcode-openrail-m unlicense afl-3.0 artistic-2.0 odc-by odbl cdla-permissive-2.0 eupl-1.2".split()
)
"""Identifiers that the hub knows; others are `other` with a name."""
_GENERATED = ("synthetic_language", "reasoning_gym")
_RESTRICTED = ("nc", "nd")


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides the fields of the export."""

    dtype: str
    """Of the exported weights."""
    equality: str
    """How the exported model was compared, with the figures."""
    files: str
    """Name of the exported folder or file."""
    figures: Sequence[Figure] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    """`RecordedOrigin` of the trained weights."""
    commit: str | None = None
    """Of a base model from the hub, if it is known."""


def model_card(fields: Mapping[str, Any], facts: CardFacts) -> str:
    """Return the text of the card.

    Args:
        fields: of the export.
        facts: what was found.

    Raises:
        ValueError: its metadata do not survive being read again.
    """
    spec, study = ExportSpec(**fields["export"]), StudySpec(**with_ablation(fields["study"]))
    ablation = AblationSpec(**fields["ablation"]) if fields["ablation"] else None
    data = _metadata(fields, spec, facts)
    parts = [
        f"# {spec.study}: {spec.ablation}",
        _summary(fields, spec, study, facts),
        "## Objective",
        _objective(spec, ablation),
        "## Training",
        _training(study, ablation, facts),
        "## Evaluation",
        _evaluation(study, facts),
        "## Licences",
        _licenses(fields),
        "## Use",
        _use(spec, facts),
        "## Reproduce",
        _reproduce(fields, spec, facts),
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    if ModelCard(text, ignore_metadata_errors=False).data.to_dict() != data.to_dict():
        raise ValueError("the metadata of the model card change when they are read again")
    return text


def _metadata(fields: Mapping[str, Any], spec: ExportSpec, facts: CardFacts) -> ModelCardData:
    base, licenses = fields["models"][fields["model"]], fields["licenses"]
    own = licenses["model"]
    is_plain = bool(own) and all(one and not _is_restricted(one) for one in _of_data(fields).values())
    license = own.lower() if is_plain and own.lower() in HUB_LICENSES else "other"
    names = None if license != "other" else "see-licences-below"
    hub_ids = [
        entry["id"] for entry in fields["datasets"].values() if _is_trained_on(entry, fields) and entry.get("id")
    ]
    return ModelCardData(
        license=license,
        license_name=names,
        base_model=base.get("id"),
        datasets=hub_ids or None,
        library_name="transformers" if spec.kind == "merged" else None,
        pipeline_tag="text-generation",
        tags=["tokenuq", *(["gguf"] if spec.kind == "gguf" else [])],
    )


def _is_trained_on(entry: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return entry["name"] in fields["licenses"]["datasets"] and not entry.get("path")


def _of_data(fields: Mapping[str, Any]) -> dict[str, str | None]:
    """Return dataset -> licence, of those with rows of others; what is generated has none, and needs none."""
    found = {}
    for name, license in fields["licenses"]["datasets"].items():
        entry = fields["datasets"][name]
        # A mix and a curated dataset have the rows of others, which are listed too.
        if entry.get("format") == "mix" or "from" in entry:
            continue
        found[name] = license or ("generated" if entry.get("format") in _GENERATED else None)
    return found


def _is_restricted(license: str) -> bool:
    return bool(set(license.lower().replace("_", "-").split("-")) & set(_RESTRICTED))


def _summary(fields: Mapping[str, Any], spec: ExportSpec, study: StudySpec, facts: CardFacts) -> str:
    base = _base(fields, facts)
    what = "the baseline teacher" if spec.is_of_teacher else f"the ablation `{spec.ablation}`"
    quantised = (
        f" In training, its base model was quantised to {study.quantization}. These weights are the dequantised ones "
        "plus the adapter: the model that was trained and evaluated."
        if study.quantization
        else ""
    )
    return (
        f"This is {what} of the study `{spec.study}`: {base}, fine-tuned on `{study.dataset}` with tokenuq. "
        f"Weights are {facts.dtype}.{quantised}\n\n{facts.equality}"
    )


def _base(fields: Mapping[str, Any], facts: CardFacts) -> str:
    entry = fields["models"][fields["model"]]
    if entry.get("id"):
        commit = facts.commit or entry.get("revision")
        return f"[{entry['id']}](https://huggingface.co/{entry['id']})" + (f" at revision `{commit}`" if commit else "")
    if entry["source"] == "pretrain":
        return f"`{fields['model']}`, a model that was trained from scratch on `{entry['language']}`"
    return f"`{fields['model']}`" + (f" (`{entry['file']}`)" if entry.get("file") else "")


def _objective(spec: ExportSpec, ablation: AblationSpec | None) -> str:
    if ablation is None:
        return (
            "Maximum likelihood on every response token: the mean of $-\\log p(y)$ over the response tokens of a batch."
        )
    formula = (
        "With the model $p$, the teacher $q$, the label $y$, the set $S$ of selected tokens, and $N$ response tokens "
        "in a batch, the loss is\n\n"
        "$L = \\frac{1}{N} \\left( \\sum_{n \\in S} a_n + \\sum_{n \\notin S} b_n \\right)$\n\n"
        "where $a$ and $b$ are the terms above: cross-entropy is $-\\log p_n(y_n)$, and forward KL is "
        "$KL(q_n \\parallel p_n)$. "
        f"The method is that of Liu, Benjamin and Zador (2025, [arXiv 2503.16511]({PAPER}))."
    )
    if ablation.select.by == "all" and ablation.selected.kind == "mle":
        formula = "The loss is the mean of $-\\log p(y)$ over the response tokens of a batch."
    return f"{ablation_sentence(ablation)}\n\n{formula}"


def _training(study: StudySpec, ablation: AblationSpec | None, facts: CardFacts) -> str:
    train = study.train if ablation is None else ablation.train.of(study.train)
    metrics = facts.origin.get("metrics", {})
    rows: dict[str, Any] = {
        "epochs": train.epochs,
        "batch size": f"{train.batch_size} examples",
        "learning rate": f"{train.learning_rate:g}, {train.lr_schedule}, warm-up {train.warmup_ratio:g}",
        "weight decay": f"{train.weight_decay:g}",
        **train.adapter_settings,
        "longest example": f"{study.max_length} tokens",
        "seed": study.teacher_seed if ablation is None else ablation.seed,
        "base model quantised to": study.quantization,
        "optimiser steps": metrics.get("steps"),
        "device, precision": ", ".join(str(metrics[key]) for key in ("device", "precision") if key in metrics) or None,
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| setting | value |", "|---|---|", *lines])


def _evaluation(study: StudySpec, facts: CardFacts) -> str:
    if not facts.figures:
        return "This model was not evaluated."
    confidence = study.evaluation.confidence
    return (
        f"Losses are in nats per token. Intervals are {confidence:.0%} bootstrap intervals over examples, and do not "
        "cover the variance over seeds. Differences are this model minus the base model, paired over examples.\n\n"
        + as_table(facts.figures, confidence)
    )


def _licenses(fields: Mapping[str, Any]) -> str:
    own, data = fields["licenses"]["model"], _of_data(fields)
    entry = fields["models"][fields["model"]]
    lines = [f"| base model | `{fields['model']}` | {own or UNKNOWN} |"]
    lines += [f"| training data | `{name}` | {license or UNKNOWN} |" for name, license in data.items()]
    words = ["The terms of the base model and of the training data apply to these weights."]
    if not own:
        page = f"; see https://huggingface.co/{entry['id']}" if entry.get("id") else ""
        words.append(f"The licence of the base model is unknown to the configuration that trained it{page}.")
    if missing := [name for name, license in data.items() if not license]:
        words.append(f"So is the licence of {', '.join(f'`{name}`' for name in missing)}.")
    if restricted := [f"`{name}` ({one})" for name, one in data.items() if one and _is_restricted(one)]:
        words.append(f"Restricted use: {', '.join(restricted)}.")
    return "\n".join(["| what | name | licence |", "|---|---|---|", *lines, "", " ".join(words)])


def _use(spec: ExportSpec, facts: CardFacts) -> str:
    if spec.kind == "gguf":
        return f"```bash\nllama-cli --model {facts.files} --conversation\n```"
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # or the id on the hub\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")\n'
        'chat = [{"role": "user", "content": "What is 7 times 6?"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        "answer = model.generate(**inputs, max_new_tokens=64)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n```'
    )


def _reproduce(fields: Mapping[str, Any], spec: ExportSpec, facts: CardFacts) -> str:
    provenance, origin = facts.origin.get("provenance", {}), facts.origin
    asset = f"{spec.study}/{spec.ablation}" + ("" if spec.is_of_teacher else "/student")
    commit = provenance.get("git_commit")
    dirty = " with uncommitted changes" if provenance.get("git_dirty") else ""
    packages = ", ".join(f"{name} {version}" for name, version in provenance.get("packages", {}).items())
    made = [
        f"- asset: `{asset}`, data version `{origin.get('data_version', UNKNOWN)}`, code version "
        f"`{origin.get('code_version', UNKNOWN)}`",
        *([f"- made: {provenance['made_at']}"] if provenance.get("made_at") else []),
        *([f"- commit of the project: `{commit}`{dirty}"] if commit else []),
        *([f"- packages: {packages}"] if packages else []),
    ]
    ablation = "" if spec.is_of_teacher else f" --ablation {spec.ablation}"
    target = "--merge model" if spec.kind == "merged" else f"--gguf {facts.files}"
    blocks = [f"`{name}`:\n\n```yaml\n{text}```" for name, text in entries(fields).items()]
    return "\n\n".join(
        [
            "\n".join(made),
            "Put these entries into a folder, and the files that they name next to them. Leave out entries that the "
            "configuration of tokenuq has already.",
            *blocks,
            f"```bash\nexport TOKENUQ_CONFIG=folder\ntokenuq run --study {spec.study}{ablation}\n"
            f"tokenuq export {spec.study}/{spec.ablation} {target} --dtype {facts.dtype}\n```",
        ]
    )
