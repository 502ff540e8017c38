"""Random prompts in token ids for tiny models, and the tokenizer ids that generation reads."""

import random
from types import SimpleNamespace

from tests.support.tiny_models import VOCAB

TOKENIZER = SimpleNamespace(eos_token_id=2, pad_token_id=2)


def prompts(count: int = 7, seed: int = 0) -> list[list[int]]:
    """Return prompts of mixed lengths; one contains the end-of-turn id, which is also the pad id."""
    draw = random.Random(seed)
    made = [[draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 12))] for _ in range(count)]
    made[1] = [5, 2, 2, 7]
    return made
