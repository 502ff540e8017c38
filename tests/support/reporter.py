"""A reporter that records what a stage reports; imports nothing, so that tests without torch can use it."""


class RecordingReporter:
    """Records the lines, results and number of tokens that a stage reports."""

    def __init__(self):
        self.lines, self.results, self.tokens = [], [], 0

    def info(self, message):
        self.lines.append(message)

    warning = info

    def count_tokens(self, tokens):
        self.tokens += tokens

    def done(self, result):
        self.results.append(result)
