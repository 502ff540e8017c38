"""One file per command of `tokenuq`: `add_parser(commands)` and the function that it names.

Commands import what they need when they run, so that `tokenuq --help` is fast. Exit codes: 0 success, 1 a stage or a
check failed, 2 wrong usage or configuration, 3 something is stale, 130 interrupted.
"""

FAILED, USAGE, STALE, INTERRUPTED = 1, 2, 3, 130
