"""Made-up rows in the columns of datasets of lm-eval's tasks."""

import json
from pathlib import Path


def write_arc(folder: Path, **rows: int) -> dict[str, str]:
    """Write files in the columns of ARC; return split -> path. Each question has three or four choices."""
    return {
        split: _write(folder / f"arc_{split}.jsonl", [_arc(split, i) for i in range(n)]) for split, n in rows.items()
    }


def write_pages(folder: Path) -> dict[str, str]:
    """Write three documents in the column of the task `wikitext`; return split -> path."""
    pages = ["How many apples are 3 and 4 ?", "The total is 7 .", "She says <b>now</b> , and one is 1 @,@ 000 ."]
    return {"test": _write(folder / "pages.jsonl", [{"page": page} for page in pages])}


def _arc(split: str, number: int) -> dict:
    texts = [f"{number} apples", f"the total is {2 * number + 1}", "none of them", "<b>now</b>"][
        : 4 if number % 3 else 3
    ]
    choices = {"text": texts, "label": list("ABCD"[: len(texts)])}
    question = f"How many {split} apples are {number} and {number + 1}?"
    return {"id": f"{split}{number}", "question": question, "choices": choices, "answerKey": "ABC"[number % 3]}


def _write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)
