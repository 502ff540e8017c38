"""One file per command of `tokenuq`: `add_parser(commands)` and the function that it names.

Commands import what they need when they run, so that `tokenuq --help` is fast. Exit codes: 0 success, 1 a stage or a
check failed (or a disk is full, or memory ran out), 2 wrong usage or configuration, 3 something is stale, 130
interrupted, 141 the reader of the output is gone (as `head` is after its last line).
"""

FAILED, USAGE, STALE, INTERRUPTED, READER_GONE = 1, 2, 3, 130, 141
