"""What a stage that was started by hand has printed."""

import json
from typing import Any


def results_in(out: str) -> list[dict[str, Any]]:
    """Return the JSON objects that a stage has printed between its lines of progress."""
    found, lines = [], iter(out.splitlines())
    for line in lines:
        if line == "{":
            text = [line]
            for more in lines:
                text.append(more)
                if more == "}":
                    break
            found.append(json.loads("\n".join(text)))
    return found
