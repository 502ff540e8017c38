"""Measure the batches of a stage by Ray Data: a pool of actors, each of which holds the model.

The stage forms batches as it does in one process, writes the tables and reports. Ray Data schedules, limits what waits,
and repeats what a lost process has not finished: a block of its pipeline is as many complete batches as one process
computes at a time, and their results come back in the order of the batches. So the tables, and their data versions, are
those of one process with as many threads.

A process that dies takes nothing with it but the block that it computes. With torchrun's ranks, it ends the stage.
"""

import itertools
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tokenuq_ml.config.resources import Processes, StageResources
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.stages.batch_work import Failure, Job, Measurer, Setting, groups
from tokenuq_ml.stages.job_feed import JobFeed
from tokenuq_ml.stages.ray_connection import cluster_nodes, connect, is_job, reserved_by_process

RETRIES = 3
"""How often a block is computed again, and a process started again, before the stage fails."""
END = b""
"""In place of a job: there are no more."""
QUEUED = 2
"""Blocks that a process has at most: one that it computes, and one that is there when it has."""


class BatchActors:
    """The processes of the cluster that measure the batches of a stage.

    They are one actor pool of one Ray Data pipeline, from the first batch of the stage to its last, so that each of
    them loads the model once, although what is measured next may depend on results. Ray Data pulls its input from
    `JobFeed`.

    Args:
        size: number of processes.
        needs: what each of them reserves, by Ray's names.
    """

    def __init__(self, size: int, needs: Mapping[str, float]):
        self.size, self.needs = size, needs
        self._feed: Any = None
        self._rows: Iterator[Mapping[str, Any]] = iter(())

    @classmethod
    def of(cls, processes: Processes, resources: StageResources) -> "BatchActors | None":
        """Return the pool of a stage; None without room for a process in addition to this one.

        Args:
            processes: number of processes, or `auto`: as many as there are GPUs.
            resources: of the stage. The stage's own process reserves a share of it, as each of them does.

        Raises:
            InputError: ray is missing, or no cluster answers.
        """
        connect()
        nodes = cluster_nodes()
        gpus = sum(node.get("GPU", 0.0) for node in nodes)
        needs = reserved_by_process(resources if processes == "auto" else resources.share(processes), gpus)
        # A job has reserved as much itself.
        size = _room(needs, nodes) - is_job()
        if processes != "auto":
            size = min(size, processes)
        elif not gpus:
            return None
        return cls(size, needs) if size > 0 else None

    def run(
        self, jobs: Sequence[Job], numerics: Numerics, progress: Callable[[int], None] = lambda units: None
    ) -> Iterator[list[Any]]:
        """Yield the results of each job's batches, in order.

        Args:
            jobs: in the order in which results are wanted.
            numerics: of this process. The others must have the same kind of device, and have as many threads.
            progress: called with the units that each group of batches counts.

        Raises:
            InputError: a batch cannot be measured, or has ended its process again and again.
        """
        with _explained():
            self._put(jobs, Setting.of(numerics))
            for job in jobs:
                yield list(self._results(job, progress))

    def stream(
        self, job: Job, numerics: Numerics, progress: Callable[[int], None] = lambda units: None
    ) -> Iterator[Any]:
        """Yield the result of each batch of a job as soon as it is there; the arguments are those of `run`."""
        with _explained():
            self._put([job], Setting.of(numerics))
            yield from self._results(job, progress)

    def close(self) -> None:
        """End the processes. The pipeline would wait for more work, and so would whoever ends Ray before it."""
        if self._feed is None:
            return
        import ray

        ray.get(self._feed.put.remote([END]))
        for _ in self._rows:
            pass
        self._feed = None

    def _results(self, job: Job, progress: Callable[[int], None]) -> Iterator[Any]:
        """Yield the results of the next job; write the states that their node could not write."""
        for row in self._rows:
            if row["failure"]:
                failure: Failure = pickle.loads(row["failure"])
                raise failure.exception() from None
            if job.states is not None:
                job.states.write(pickle.loads(row["states"]))
            for result, units in pickle.loads(row["results"]):
                progress(units)
                yield result
            if row["is_last"]:
                return
        raise RuntimeError("the pipeline of Ray Data has ended before the stage")

    def _put(self, jobs: Sequence[Job], setting: Setting) -> None:
        """Give the jobs to the pipeline; start it with the first ones."""
        import ray

        items = [pickle.dumps((job, setting)) for job in jobs]
        if self._feed is None:
            self._feed = ray.remote(num_cpus=0, scheduling_strategy=_on_this_node())(JobFeed).remote()
            self._rows = self._pipeline(self._feed)
        ray.get(self._feed.put.remote(items))

    def _pipeline(self, feed: Any) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of `Measurer`, in the order of jobs and of their groups."""
        import ray
        from ray.data import ActorPoolStrategy
        from ray.util.annotations import RayDeprecationWarning

        _configure()
        with warnings.catch_warnings():
            # Nodes and limits of restarts are options of Ray's actors, for which Ray Data has no names of its own yet
            # (2.60).
            warnings.simplefilter("ignore", RayDeprecationWarning)
            # Where the stage has its input, so that other nodes need not have it.
            source = ray.data.from_items([{"job": 0}]).flat_map(
                _groups_of, fn_kwargs={"feed": feed}, num_cpus=0, scheduling_strategy=_on_this_node()
            )
            measured = source.map(
                Measurer,
                compute=ActorPoolStrategy(size=self.size, max_tasks_in_flight_per_actor=QUEUED),
                max_restarts=RETRIES,
                max_task_retries=RETRIES,
                **_keywords(self.needs),
            )
        # Prefetching would hold a result back until there is another one.
        for block in measured.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from block.to_pylist()


def _on_this_node() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _groups_of(row: dict[str, Any], feed: Any) -> Iterator[dict[str, Any]]:
    """Yield the work of each job as the stage gives it."""
    import ray

    for number in itertools.count():
        item = ray.get(feed.get.remote(number))
        if item == END:
            return
        yield from groups(*pickle.loads(item))


def _keywords(needs: Mapping[str, float]) -> dict[str, Any]:
    """Return what a process reserves as keywords of Ray Data."""
    names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    found: dict[str, Any] = {names[name]: amount for name, amount in needs.items() if name in names}
    rest = {name: amount for name, amount in needs.items() if name not in names}
    return {**found, "resources": rest} if rest else found


def _room(needs: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many processes the cluster holds that reserve as much."""
    return sum(int(min(node.get(name, 0.0) / amount for name, amount in needs.items())) for node in nodes)


def _configure() -> None:
    """Let Ray Data keep the order, and make a block of each row."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.target_max_block_size = 1
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = RETRIES
    # A job waits for its share of a busy cluster as long as it takes.
    context.execution_no_progress_timeout_s = -1
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _explained() -> Iterator[None]:
    """Raise what Ray says of lost processes as one sentence."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:
        # An exception of ours on a node.
        raise
    except RayError as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"a process that measures batches has died {RETRIES + 1} times, as when its memory runs out ({said}); "
            "reserve more by `resources` of the study, or set `processes: 1` to see why"
        ) from None


_actors: BatchActors | None = None


def use(actors: BatchActors | None) -> None:
    """Let the stage of this process measure its batches there; None: here."""
    global _actors
    _actors = actors


def current() -> BatchActors | None:
    """Return where the stage of this process measures its batches; None: here, or in torchrun's ranks."""
    return _actors
