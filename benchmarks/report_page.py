"""The report of a study with 40 families of 10 seeds: how long the page takes to open in Chromium, and to be made.

The tables hold texts of real datasets under made-up numbers (`tests/support/large_report.py`). The page is opened from
its file by a new tab of a running browser. It is open once the document is complete, scripts have run, and the frame
after that is painted. The token explorer is unpacked when it comes into view, and is timed on its own.
"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.common import Row
from tests.support import chromium, large_report
from tests.support.reporter import RecordingReporter
from tokenuq_ml.stages import report

OPEN_SECONDS = 2.0
OPENED = """new Promise(done => {
  const painted = () => requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0));
  document.readyState === "complete" ? painted() : addEventListener("load", painted);
})"""
FIGURES = """(() => { const load = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return { interactive: load.domInteractive, loaded: load.loadEventEnd, first: paint ? paint.startTime : null,
           nodes: document.querySelectorAll("*").length } })()"""
EXPLORER = """new Promise(done => { const from = performance.now(), box = document.getElementById("explorer");
  box.parentElement.scrollIntoView();
  const look = () => document.querySelector("#x-tokens span") ? done(performance.now() - from) : setTimeout(look, 5);
  look() })"""


def open_page(page: chromium.Page, file: Path) -> dict[str, float]:
    """Return milliseconds from the navigation to what a reader sees, the nodes, and MiB of the page's memory."""
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=file.resolve().as_uri())
    painted = page.evaluate(OPENED)
    figures = {"painted": painted, **page.evaluate(FIGURES), "explorer": page.evaluate(EXPLORER)}
    page.call("Performance.enable")
    metrics = {one["name"]: one["value"] for one in page.call("Performance.getMetrics")["metrics"]}
    return {**figures, "heap_mib": metrics["JSHeapUsedSize"] / 2**20, "task": 1e3 * metrics["TaskDuration"]}


def median(runs: list[dict[str, float]], name: str) -> float:
    """Return the median of a figure over runs."""
    return statistics.median(run[name] for run in runs)


def run(repeats: int) -> list[Row]:
    """Return the rows of the page; none without Chromium."""
    if chromium.program() is None:
        print("  no Chromium on PATH: the report's page is not opened", flush=True)
        return []
    with tempfile.TemporaryDirectory() as folder:
        request = large_report.write_tables(Path(folder))
        started, processor = time.perf_counter(), time.process_time()
        report.run(request, RecordingReporter())
        made, worked = time.perf_counter() - started, time.process_time() - processor
        file = Path(folder, "report", report.PAGE)
        megabytes = file.stat().st_size / 1e6
        with chromium.Page(None, Path(folder, "profile"), width=1280) as page:
            runs = [open_page(page, file) for _ in range(repeats + 1)][1:]
        print(f"  {json.dumps(runs)}, load {os.getloadavg()[0]:.1f}", flush=True)
    what = f"report of {large_report.FAMILIES} families of {large_report.SEEDS} seeds ({megabytes:.1f} MB)"
    seconds = {name: median(runs, name) / 1e3 for name in ("painted", "explorer")}
    return [
        Row(
            f"{what}: {meaning}",
            f"{seconds[name]:.2f} s",
            "",
            seconds[name],
            f"ours <= {OPEN_SECONDS:g} s",
            seconds[name] <= OPEN_SECONDS,
        )
        for name, meaning in (("painted", "opens in Chromium"), ("explorer", "the token explorer appears"))
    ] + [Row(f"{what}: is made", f"{made:.0f} s", f"{worked:.0f} s of a processor", worked / made, "reported", True)]
