"""The page `docs/results/cluster.md`, from what was seen."""

HEAD = """# Stages on a Ray cluster: the same results, and what happens when a part fails

Written by `python -m tests.cluster --failures --page docs/results/cluster.md`. With `--only WORD ...` it tries the
failures with these words and keeps the other rows, so that rows may be of several runs. The cluster is Ray's own, on
one machine: a head node that runs no stage, and two nodes with one processor each. The study is that of the end-to-end
test with two ablations and a longer training of the teacher; every stage is a real one on a tiny random model. Killed
means SIGKILL to all processes of a node. Every row ends with the data versions of the run on one machine.

| what fails | expected | what was seen | as expected |
|---|---|---|---|
"""
LAST_OF_HEAD = HEAD.splitlines()[-1]


def page(rows: list[tuple[str, str, str, bool]], before: str = "") -> str:
    """Return the page.

    Args:
        rows: what failed, what is expected, what was seen, and whether it was as expected.
        before: an earlier page, whose other rows are kept.
    """
    table = before.partition(LAST_OF_HEAD)[2].splitlines()
    lines = {line.strip("| ").split(" | ")[0]: line for line in table if line.startswith("| ")}
    for what, expected, seen, well in rows:
        lines[what] = f"| {what} | {expected} | {seen} | {'yes' if well else '**no**'} |"
    return HEAD + "".join(f"{line}\n" for line in lines.values())
