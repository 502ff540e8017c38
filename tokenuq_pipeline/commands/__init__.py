"""One file a command of `tokenuq`: `add_parser(commands)` and the function that it names.

Commands import what they need when they run, so that `tokenuq --help` is quick. Exit codes: 0 done,
1 a stage or a check failed, 2 bad usage or configuration, 3 something is stale, 130 interrupted.
"""

FAILED, USAGE, STALE, INTERRUPTED = 1, 2, 3, 130
