"""The keys of a `datasets.yaml` entry that say how rows are read, and the columns that each format reads."""

from typing import Annotated, Literal

from pydantic import Field

from tokenuq_ml.config.base import Spec

_ROW = ("split", "label", "kto_tag")
_TURN = ("role", "content", "weight", "train")
_PROMPT = ("system", "system_prompt", "tools", "functions", "chat_template_kwargs", *_ROW)
_CHAT = (*_PROMPT, "chosen", "rejected", *_TURN)
_ANSWER = ("history", "reasoning_content", "thinking")
FORMAT_COLUMNS: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "context", "output", *_ANSWER, *_CHAT),
    "dolly": ("instruction", "context", "response", "category", *_ANSWER, *_CHAT),
    "gsm8k": ("question", "answer", *_PROMPT),
    "prompt_completion": ("prompt", "completion", "context", *_ANSWER, *_CHAT),
    "sharegpt": ("conversations", "id", *_CHAT),
    "messages": ("messages", "prompt", "id", *_CHAT),
    "alpaca_eval": ("instruction", "output", "generator", *_PROMPT),
    "raw_text": ("text", *_ROW),
    "ifeval": ("prompt", "key", "instruction_id_list", "kwargs", *_PROMPT),
}
"""Format -> the columns, and the fields of turns, that it reads and that `columns` may map."""

ROW_KEYS = frozenset({"columns", "roles", "train_on", "merge_turns", "turns_joined"})

_UNJOINED = {
    "ifeval": "its rows have no answers",
    "raw_text": "its rows are texts and no conversations",
}
"""Format -> why its rows cannot be joined."""


class RowKeys(Spec):
    """How the rows of a dataset are read."""

    columns: dict[str, str | None] = Field(
        default_factory=dict, description="the format's name of a column or turn field -> the data's; null: do not read"
    )
    roles: dict[str, Literal["system", "developer", "user", "assistant", "tool"]] = Field(
        default_factory=dict, description="the data's name of a role -> ours"
    )
    train_on: Literal["all", "last"] = Field(
        default="all", description="last: of each conversation, only the last answer is trained and scored"
    )
    merge_turns: bool = Field(default=False, description="join consecutive turns of one role")
    turns_joined: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="rows that one conversation is made of, in the order of the data; `sizes` counts these"
    )

    def check_rows(self, row_format: str) -> None:
        """Check that `columns` names only columns that the format reads, and that its rows can be joined.

        Raises:
            ValueError: `columns` names another, or `turns_joined` is above 1 for a format whose rows cannot be joined.
        """
        if self.turns_joined > 1 and row_format in _UNJOINED:
            raise ValueError(f"'turns_joined' cannot join rows of format {row_format!r}: {_UNJOINED[row_format]}")
        allowed = FORMAT_COLUMNS.get(row_format, ())
        for name in self.columns:
            if name not in allowed:
                raise ValueError(
                    f"'columns': format {row_format!r} reads no column {name!r}; the format's name goes on the left, "
                    f"one of {', '.join(allowed) or 'none'}"
                )
