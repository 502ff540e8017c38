"""The page `docs/results/cluster.md`, from what was seen."""

HEAD = """# Stages on a Ray cluster: the same results, and what happens when a part fails

Written by `python -m tests.cluster --failures --page docs/results/cluster.md`. The cluster is Ray's own, on one
machine: a head node that runs no stage, and two nodes with one processor each. The study is that of the end-to-end
test with one ablation and a longer training of the teacher; every stage is a real one on a tiny random model. Killed
means SIGKILL to all processes of a node. Every row ends with the data versions of the run on one machine.

| what fails | expected | what was seen | as expected |
|---|---|---|---|
"""


def page(rows: list[tuple[str, str, str, bool]]) -> str:
    """Return the page.

    Args:
        rows: what failed, what is expected, what was seen, and whether it was as expected.
    """
    return HEAD + "".join(
        f"| {what} | {expected} | {seen} | {'yes' if well else '**no**'} |\n" for what, expected, seen, well in rows
    )
