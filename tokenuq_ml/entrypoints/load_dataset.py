"""Child process of `datasets/<dataset>`: read or make the examples, store them as one table."""

from collections import Counter

import pyarrow as pa

from tokenuq_ml.datasets import Example, load_examples
from tokenuq_ml.entrypoints import runner
from tokenuq_ml.specs import DatasetSpec
from tokenuq_ml.stages import AssetResult, Reporter, StageRequest
from tokenuq_ml.tables import TABLES, write_table


def run(request: StageRequest, reporter: Reporter) -> None:
    """Fills the output `examples`."""
    asset = request.assets["datasets"]
    spec = DatasetSpec(**asset.fields)
    loaded = load_examples(spec)
    rows = [example.row for example in loaded.examples]
    table = pa.Table.from_pylist(rows, schema=TABLES["examples"].schema)
    digest = write_table(
        table, "examples", asset.outputs["examples"], spec_hash=asset.spec_hash, code_version=asset.code_version
    )
    counts = Counter(example.split for example in loaded.examples)
    reporter.info(f"{spec.name}: {', '.join(f'{count} {split}' for split, count in counts.items())}")
    reporter.done(
        AssetResult(
            stage="datasets",
            data_version=digest,
            metrics={
                **{f"rows_{split}": count for split, count in counts.items()},
                "duplicate_questions_dropped": loaded.duplicates_dropped,
                **template_overlap(loaded.examples),
            },
        )
    )


def template_overlap(examples: list[Example]) -> dict[str, int]:
    """How many question templates of test occur in train; empty where templates are not known."""
    known = [example for example in examples if example.source.get("template") is not None]
    templates = {split: [e.source["template"] for e in known if e.split == split] for split in ("train", "test")}
    if not templates["test"]:
        return {}
    train, test = set(templates["train"]), templates["test"]
    return {
        "test_templates": len(set(test)),
        "test_templates_shared_with_train": len(set(test) & train),
        "test_examples_sharing_train_template": sum(template in train for template in test),
    }


if __name__ == "__main__":
    runner.main(run)
