"""What a stage reports of its results, to the terminal or nowhere; `runner.py` reports to a Dagster run."""

import contextlib
import resource
import sys
import time
from pathlib import Path

from tokenuq_ml import process_group
from tokenuq_ml.redaction import redacted_values
from tokenuq_ml.stages.provenance import package_versions
from tokenuq_ml.stages.request import AssetResult

FIRST_REPORTS_S = 1.0
"""Seconds for which another rank that fails lets rank 0 report, which has most likely found the same."""


def with_usage(result: AssetResult, started: float, tokens: int = 0) -> AssetResult:
    """Add time, memory and throughput to the metrics, and the package versions to the result.

    Adds `seconds` since `started`, `peak_memory_mib` of the process, `tokens_per_second` if tokens were counted, and
    `device` and `precision` for stages without a model.
    """
    seconds = time.monotonic() - started
    usage = {"seconds": round(seconds, 2), "peak_memory_mib": round(peak_memory_mib())}
    if tokens:
        usage["tokens_per_second"] = round(tokens / max(seconds, 1e-9), 1)
    metrics = {"device": "cpu", "precision": "no model", **result.metrics, **usage}
    return result.model_copy(update={"metrics": redacted_values(metrics), "packages": package_versions()})


def with_numerics(result: AssetResult) -> AssetResult:
    """Append the resolved device and precision to the data version of a result that was computed with a model.

    Two machines may resolve `precision: auto` differently, and their results then differ in the version too.
    """
    numerics = [str(result.metrics[key]) for key in ("device", "precision") if key in result.metrics]
    return result.model_copy(update={"data_version": "-".join([result.data_version, *numerics])})


def peak_memory_mib() -> float:
    """Return the largest resident size that this process has had."""
    try:
        # On Linux, ru_maxrss survives exec: a small child process would report the peak of its parent.
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


class Usage:
    """Time and tokens since the last result; the base of all reporters."""

    def __init__(self):
        self._since, self._tokens = time.monotonic(), 0

    def count_tokens(self, tokens: int) -> None:
        """Add tokens that passed through the model."""
        self._tokens += tokens

    def complete(self, result: AssetResult) -> AssetResult:
        """Return the result with its usage since the last one."""
        result = with_usage(with_numerics(result), self._since, self._tokens)
        self._since, self._tokens = time.monotonic(), 0
        return result


class TerminalReporter(Usage):
    """Prints to the terminal, for a stage that is run by hand."""

    def info(self, message: str) -> None:
        """Print a message."""
        print(message, flush=True)

    warning = info

    def done(self, result: AssetResult) -> None:
        """Print the result."""
        result = self.complete(result)
        print(result.model_dump_json(indent=1), flush=True)

    def bad_input(self, message: str) -> None:
        """Print the error."""
        print(f"error: {message}", file=sys.stderr, flush=True)


class RankReporter(Usage):
    """The reporter of a rank other than 0, which reports nothing: rank 0 does the same work and reports it."""

    def info(self, message: str) -> None:
        """Report nothing."""

    warning = info

    def done(self, result: AssetResult) -> None:
        """Refuse a result: rank 0 alone writes outputs.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"rank {process_group.rank()} has reported {result.stage}, which rank 0 alone does")

    def bad_input(self, message: str) -> None:
        """Let rank 0 report."""
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(FIRST_REPORTS_S)
