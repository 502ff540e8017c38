"""The tables of datasets: examples, tokens, and the rows and examples that are left out."""

from tokenuq_ml.tables.table import TOKEN_COLUMNS, TOKEN_KEY, Table

_MESSAGES = "list<struct<role: string, content: string>>"

DATA_TABLES = {
    "examples": Table(
        "One row per example of a dataset, in a common format.",
        {
            "example_id": ("string", "unique; starts with the name of the dataset"),
            "split": ("string", "train, validation, test or ood"),
            "messages": (_MESSAGES, "the conversation, as role and content"),
            "source": ("string", "JSON: origin of the example, and further fields of its format"),
            "turns": ("string", "JSON: the turns, if one has more than role and content (tool calls, reasoning)"),
            "turn_weights": ("list<float32>", "weight of each turn in training; null: 1 for assistant turns"),
            "template": ("string", "JSON: tools and chat_template_kwargs, which the chat template gets"),
            "untrained_spans": (
                "list<list<int32>>",
                "[turn, start, end]: characters of trained turns, counted from 0, that are not trained",
            ),
        },
        keys=("example_id",),
        partitions=("dataset",),
        optional=("turns", "turn_weights", "template", "untrained_spans"),
    ),
    "rejected_rows": Table(
        "One row per rejected row of a dataset's source, with the reason.",
        {
            "number": ("int64", "order in which rows were rejected, from 0"),
            "file": ("string", "name of the file, or of the hub dataset"),
            "row": ("int64", "number of the row in the file, from 1"),
            "line": ("int64", "line on which it begins, from 1; null if the format has no lines"),
            "reason": ("string", "kind of fault or of repetition"),
            "detail": ("string", "the fault or repetition in detail"),
        },
        keys=("number",),
        partitions=("dataset",),
    ),
    "tokenized_dataset": Table(
        "One row per example, as tokens of the study's model.",
        {
            "example_id": ("string", "unique; starts with the name of the dataset"),
            "dataset": ("string", "name of the dataset"),
            "split": ("string", "train, validation, test or ood"),
            "input_ids": ("list<int32>", "token ids, chat template applied"),
            "response_mask": ("list<bool>", "true for tokens that are trained and scored"),
            "token_weight": ("list<float32>", "factor of each token's term in training; null: 1"),
        },
        keys=("example_id",),
        optional=("token_weight",),
    ),
    "token_truth": Table(
        "One row per response token of a synthetic language: the distribution that generated it. All splits.",
        {
            **TOKEN_COLUMNS,
            "slot": ("category", "structure, copy, computation, fact or choice: how the token is decided"),
            "true_entropy": ("float64", "entropy of the token's true distribution, nats"),
            "true_loss": ("float64", "-log of the token's true probability, nats"),
            "support": ("list<int32>", "ids of the tokens that are possible, ascending"),
            "probabilities": ("list<float64>", "the true probability of each, label noise included"),
            "clean_probabilities": ("list<float64>", "the same without label noise"),
        },
        keys=TOKEN_KEY,
    ),
    "rejected_examples": Table(
        "One row per example of a study's datasets that is not in tokenized_dataset, with the reason.",
        {
            "example_id": ("string", "the example; starts with the name of its dataset"),
            "dataset": ("string", "name of the dataset"),
            "split": ("string", "train, validation, test or ood"),
            "reason": ("string", "kind of fault, or the rule that left it out"),
            "detail": ("string", "the fault in detail, with the turn"),
        },
        keys=("example_id",),
    ),
}
