"""The exception for invalid input."""


class InputError(ValueError):
    """Invalid input: the message names the file, key or row, and says how to correct it.

    Entry points print the message without a traceback. Bugs raise other exceptions, which keep theirs.
    """


class NonFiniteError(InputError):
    """A loss, gradient, weight or score is NaN or infinite: the message names where, and for which examples."""
