"""Settings of the test process: no network, one thread for tensors, no searches of imported modules for garbage."""

import gc
import os
import re
import shutil
import signal
import sys
import tempfile
from functools import lru_cache

import pytest

# Before anything imports a Hugging Face library: they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    DAGSTER_DISABLE_TELEMETRY="1",
    # On tensors of a few kilobytes, two threads would mostly wait for each other. Child processes read this too.
    OMP_NUM_THREADS="1",
)
# Hashes of files that queries keep (`file_hashes.KeptHashes`) stay out of the user's folder.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tokenuq-tests-")
# Nothing that is imported becomes garbage; searching for it takes a sixth of the time of the imports.
gc.disable()
# A process that a shell starts in the background ignores Ctrl-C, and its children do too. Tests send it to children.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("DAGSTER_HOME", "TOKENUQ_HOME", "TOKENUQ_CONFIG"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _forget_hidden_values():
    """Forget after each test what it has hidden: a judge's key of one test may be an ordinary word of the next."""
    redaction = sys.modules.get("tokenuq_ml.redaction")
    before = set(redaction._hidden) if redaction else set()
    yield
    if redaction := sys.modules.get("tokenuq_ml.redaction"):
        redaction._hidden.intersection_update(before)


@lru_cache
def _left_out(expression):
    """Return the markers that an expression such as `not slow and not heavy` leaves out; none for other expressions."""
    return set(expression.split()) - {"not", "and"} if re.fullmatch(r"not \w+( and not \w+)*", expression) else set()


def pytest_ignore_collect(collection_path, config):
    """Do not import a file all of whose tests `-m` leaves out: imports take most of the time of a collection."""
    if collection_path.suffix == ".py" and (left_out := _left_out(config.option.markexpr)):
        statement = re.search(r"^pytestmark = .*(\n[ \])].*)*", collection_path.read_text(), re.MULTILINE)
        if statement and left_out & set(re.findall(r"\bmark\.(\w+)", statement[0])):
            return True
    return None


def pytest_collection_modifyitems(items):
    """Run files with slow tests first. The short files at the end then keep both processes busy until the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _leave_writing_to_the_system(connection, _):
    """Let SQLite wait for no disk: Dagster opens and commits a database for each of its events."""
    if type(connection).__module__.partition(".")[0] == "sqlite3":
        connection.execute("PRAGMA synchronous = OFF")


def _keep_engines():
    """Let Dagster's storages use an engine of SQLAlchemy again, with the SQL that it has compiled.

    They make one for each statement. No connection is kept: the engines have no pool.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("dagster._core.storage.") and name.rpartition(".")[2].startswith("sqlite_"):
            kept, create = {}, module.create_engine

            def create_once(address, kept=kept, create=create, **options):
                key = (address, repr(options))
                if key not in kept:
                    kept[key] = create(address, **options)
                return kept[key]

            module.create_engine = create_once


def _keep_migrations():
    """Let alembic read the scripts of Dagster's migrations once: it does for each database that is opened or made."""
    if alembic := sys.modules.get("alembic.script.base"):
        kept, read = {}, alembic.ScriptDirectory.from_config

        def read_once(config):
            key = (config.config_file_name, config.get_main_option("script_location"))
            if key not in kept:
                kept[key] = read(config)
            return kept[key]

        alembic.ScriptDirectory.from_config = read_once


def pytest_collection_finish():
    """Prepare the process for many small tests, once all modules are imported."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if sqlalchemy := sys.modules.get("sqlalchemy"):
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", _leave_writing_to_the_system)
        _keep_engines()
    _keep_migrations()
    # Each training collects garbage several times. Without this, it would search all imported modules each time.
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish():
    """Undo `gc.freeze`: DuckDB reports objects that are never collected as leaks when the process exits."""
    gc.unfreeze()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
