"""The asset graph as text: one line per asset with its op, pool, dependencies, checks and automation.

`tests/pipeline/test_graph_snapshot.py` compares the graph of `config/` with `tests/pipeline/graph_snapshot.txt`.
After an intended change of the graph, write the file again and read its diff:

    python -m tests.support.graph_snapshot > tests/pipeline/graph_snapshot.txt

Ablations of a study that differ in nothing but the name share their lines; `*` stands for the name.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import dagster as dg

from tokenuq_pipeline.assets.integrity_checks import NAME as INTACT

HEADER = """\
# The graph of the configuration in config/. To write this file again:
#     python -m tests.support.graph_snapshot > tests/pipeline/graph_snapshot.txt
# A check that ends in "!" is blocking. "subset": the op can make some of its assets without the others.
# Within a study, keys leave the study's name out; "*" is the name of each ablation in the list above the line.
"""


def snapshot(defs: dg.Definitions) -> str:
    """Return the text: shared assets, then studies by name, then schedules and sensors."""
    graph = defs.resolve_asset_graph()
    specs = {spec.key: spec for spec in defs.resolve_all_asset_specs()}
    studies = sorted({key.path[0] for key in specs} - {"models", "datasets", "files", "curation", "comparisons"})
    lines = [
        HEADER,
        "# Shared",
        *sorted(_line(graph, spec) for key, spec in specs.items() if key.path[0] not in studies),
    ]
    for study in studies:
        lines += ["", *_study(defs, graph, study, [spec for key, spec in specs.items() if key.path[0] == study])]
    lines += ["", "# Schedules"]
    lines += [
        f"{one.name} | cron={one.cron_schedule} | job={one.job_name} | {one.default_status.value}"
        for one in sorted(defs.schedules, key=lambda one: one.name)
    ]
    lines += ["", "# Sensors"]
    lines += [
        f"{one.name} | {type(one).__name__} | every {one.minimum_interval_seconds} s | {one.default_status.value}"
        for one in sorted(defs.sensors, key=lambda one: one.name)
    ]
    return "\n".join(lines) + "\n"


def _study(defs: dg.Definitions, graph, study: str, specs: list[dg.AssetSpec]) -> Iterator[str]:
    job = defs.resolve_job_def(study)
    outside = sorted(
        key.to_user_string() for key in job.asset_layer.selected_asset_keys if key not in {spec.key for spec in specs}
    )
    inside = len(job.asset_layer.selected_asset_keys) - len(outside)
    yield f"# Study {study}: job of its {inside} assets and {' '.join(outside)}"
    own = [spec for spec in specs if len(spec.key.path) == 2]
    yield from sorted(_line(graph, spec, study) for spec in own)
    ablations: dict[str, list[str]] = {}
    for spec in specs:
        if len(spec.key.path) == 3:
            name = spec.key.path[1]
            ablations.setdefault(name, []).append(_line(graph, spec, study, name))
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, lines in sorted(ablations.items()):
        alike.setdefault(tuple(sorted(lines)), []).append(name)
    for lines, names in alike.items():
        yield f"  ablations {' '.join(names)}"
        yield from (f"  {line}" for line in lines)


def _line(graph, spec: dg.AssetSpec, study: str = "", ablation: str = "") -> str:
    """The line of one asset; the names of study and ablation are shortened in it."""
    node = graph.get(spec.key)
    definition = graph.assets_def_for_key(spec.key) if node.is_materializable else None
    condition = spec.automation_condition

    def short(key: dg.AssetKey) -> str:
        path = list(key.path)
        if study and path[0] == study:
            path = ["*" if part == ablation else part for part in path[1:]]
        return "/".join(path)

    parts = {
        "group": spec.group_name or "-",
        "op": definition.op.name if definition else "observation",
        "pool": (definition.op.pool if definition else None) or "-",
        "kinds": " ".join(sorted(spec.kinds)),
        "deps": _folded(short(dep.asset_key) for dep in spec.deps),
        "checks": " ".join(
            sorted(
                _check(graph, key, short)
                for key in graph.asset_check_keys
                # Every asset has `files_intact`.
                if key.asset_key == spec.key and key.name != INTACT
            )
        ),
    }
    if ablation:
        parts["group"] = parts["group"].replace(f"/{ablation}", "/*")
        parts["op"] = parts["op"].replace(f"__{ablation}", "__*")
    words = [short(spec.key), *(f"{name}={value}" for name, value in parts.items() if value not in ("", "-"))]
    if definition and definition.can_subset:
        words.append("subset")
    if condition:
        words.append(f"condition={condition.get_label()}")
    return " | ".join(words)


def _folded(names: Iterable[str]) -> str:
    """The names, with the three assets of an ablation as one where all three are there."""
    stages, ablations, rest = ("student", "evaluation", "curriculum"), {}, []
    for name in names:
        parts = name.split("/")
        if len(parts) == 2 and parts[1] in stages and parts[0] != "*":
            ablations.setdefault(parts[0], set()).add(parts[1])
        else:
            rest.append(name)
    for name, found in ablations.items():
        rest += [f"{name}/(student,evaluation,curriculum)"] if len(found) == 3 else [f"{name}/{one}" for one in found]
    return " ".join(sorted(rest))


def _check(graph, key: dg.AssetCheckKey, short) -> str:
    spec = graph.get_check_spec(key)
    also = ",".join(sorted(short(dep.asset_key) for dep in spec.additional_deps))
    return f"{key.name}{f'({also})' if also else ''}{'!' if spec.blocking else ''}"


def shipped() -> str:
    """Return the snapshot of the configuration in `config/`."""
    from tests.support.shipped_studies import one_of_each
    from tokenuq_pipeline.definitions import build_defs

    with tempfile.TemporaryDirectory() as home:
        return snapshot(build_defs(one_of_each(), Path(home)))


if __name__ == "__main__":
    sys.stdout.write(shipped())
