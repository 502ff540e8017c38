"""The one exception for input that a person has to mend.

Entry points print its message alone, with no traceback: it must name the file,
the row or key, and what to do. It does not cover bugs: those keep their traceback.
"""


class InputError(ValueError):
    """Bad input, said in one sentence that names what is wrong and the mend."""
