"""The reporter that tests give a stage. Imports nothing, so that torch-free tests stay so."""


class RecordingReporter:
    """Keeps what it is told."""

    def __init__(self):
        self.lines, self.results, self.tokens = [], [], 0

    def info(self, message):
        self.lines.append(message)

    warning = info

    def count_tokens(self, tokens):
        self.tokens += tokens

    def done(self, result):
        self.results.append(result)
