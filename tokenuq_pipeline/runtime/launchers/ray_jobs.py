"""Stages as jobs of a Ray cluster that exists already.

A stage is the same command as under the local launcher. It is submitted as a Ray job that reserves what the study says,
and runs where the store is mounted under the same path. Everything else goes through the job's folder in the store
(`job_folders.py`): messages, output, the environment with its keys, the exit code. Ray schedules, starts and stops.

A job that has started is interrupted through its folder, for which the head node need not answer. Ray's own stop, from
its dashboard, is told to send SIGINT, and to wait for the checkpoint. It signals every process of the job; ranks ignore
the second interrupt, which torchrun passes on.
"""

import contextlib
import secrets
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenuq_ml.background import looking
from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.failures import name_of
from tokenuq_ml.stages.job_files import JobDescription
from tokenuq_ml.stages.provenance import code_hash
from tokenuq_ml.stages.request import StageRequest
from tokenuq_ml.stages.runner import THREADS
from tokenuq_pipeline.runtime.bucket_jobs import BucketJobs, bucket_jobs
from tokenuq_pipeline.runtime.child_output import ChildOutput
from tokenuq_pipeline.runtime.folder_lock import lock_folder
from tokenuq_pipeline.runtime.launch_command import cluster_command, processes_of
from tokenuq_pipeline.runtime.launchers.base import Backend, Launch, Slot
from tokenuq_pipeline.runtime.launchers.carried_jobs import (
    carried_environment,
    in_bucket,
    reads_this_machine,
    refuse_spread,
    submission,
)
from tokenuq_pipeline.runtime.launchers.job_environment import (
    OF_A_SPREAD_JOB,
    OMP_THREADS,
    job_environment,
    reserved,
    spreads,
    threads,
)
from tokenuq_pipeline.runtime.launchers.job_folders import JobFolder, beating_for, create_job, end_jobs, jobs_in
from tokenuq_pipeline.runtime.launchers.local import LocalBackend
from tokenuq_pipeline.runtime.launchers.ray_cluster import ClusterAway, NodeResources, RayCluster, TokenRefused
from tokenuq_pipeline.runtime.launchers.ray_settings import RaySettings
from tokenuq_pipeline.runtime.launchers.ray_stage import RayStage
from tokenuq_pipeline.runtime.message_file import MessageFile
from tokenuq_pipeline.runtime.stage_failure import StageFailure

PROGRAM = "tokenuq_ml.stages.cluster_job"
CLUSTER_WAIT_S = 300.0
"""How long a step waits for a cluster that does not answer, as while its head node restarts."""


@dataclass(frozen=True)
class RayBackend(Backend):
    """Runs stages as jobs of a Ray cluster."""

    cluster: RayCluster
    settings: RaySettings = field(default_factory=RaySettings)

    def carries(self, request: StageRequest) -> bool:
        """Return whether the node exchanges the files of a stage with the bucket of the store itself."""
        return not self.settings.shares_cache and in_bucket(request) and not reads_this_machine(request)

    @contextlib.contextmanager
    def open(self, launch: Launch) -> Iterator[Slot]:
        """Find the job of an earlier run that makes the same, or create the folder of a new one."""
        request = launch.request
        if not self.settings.shares_cache and in_bucket(request) and reads_this_machine(request):
            launch.context.log.info(f"{name_of(request)} reads files of this machine, and runs here")
            with LocalBackend().open(launch) as slot:
                yield slot
        elif self.carries(request):
            with bucket_jobs(Path(request.work_dir)) as carried, self._open(launch, carried) as slot:
                yield slot
        else:
            with self._open(launch, None) as slot:
                yield slot

    @contextlib.contextmanager
    def _open(self, launch: Launch, carried: BucketJobs | None) -> Iterator[Slot]:
        work_dir, say = Path(launch.request.work_dir), launch.context.log.info
        with lock_folder(work_dir, say):
            # A child of a local launcher has ended, and the lease keeps others away.
            pass
        try:
            resources = self.cluster.wait(CLUSTER_WAIT_S, say)
        except TokenRefused as refused:
            raise StageFailure(str(refused)) from None
        except ClusterAway as away:
            raise StageFailure(
                f"the Ray cluster does not answer: {away}; start it, or unset TOKENUQ_LAUNCHER"
            ) from None
        found = self._followed(work_dir, launch)
        end_jobs(work_dir, say, kept=found)
        job = found or self._create(work_dir, launch, resources)
        slot = None
        try:
            with (
                looking(beating_for(job, lambda: not launch.lease.lost), _beat_s(launch), "ray-job"),
                ChildOutput(job.path, is_shared=True) as output,
            ):
                slot = _RaySlot(self, launch, job, output, resources, carried, is_new=found is None)
                yield slot
        finally:
            # Of a job that may still work, or that another run follows, the folder stays.
            stage = slot.stage if slot else None
            if not launch.lease.lost and (stage is None or stage.is_over):
                job.remove()

    def _followed(self, work_dir: Path, launch: Launch) -> JobFolder | None:
        """Return a job that works on what is asked for, or has completed it while no run was there."""
        for job in jobs_in(work_dir):
            description, end = job.description(), job.end()
            if description is None or description.remote != self.cluster.address or not job.fits(launch.request):
                continue
            if end.code == 0 if end else self._goes_on(job):
                return job
        return None

    def _goes_on(self, job: JobFolder) -> bool:
        """Return whether a job works, or waits for its resources.

        Of a job that Ray has lost, the heartbeat may still be recent.
        """
        if job.silence() is not None and not job.works():
            return False
        with contextlib.suppress(ClusterAway):
            return not self.cluster.state(job.id).has_ended
        return False

    def _create(self, work_dir: Path, launch: Launch, resources: NodeResources) -> JobFolder:
        request = launch.request
        command = cluster_command(
            launch.package, request, "{request}", processes_of(request), spreads(request, resources)
        )
        name = "-".join(
            ("tokenuq", launch.context.run_id[:8], name_of(request).replace("/", "-"), secrets.token_hex(4))
        )
        description = JobDescription(
            arguments=command[1:],
            code=code_hash(),
            expiry_s=launch.lease.expiry_s,
            unattended_s=self.settings.unattended_s,
            grace_s=launch.termination_timeout,
            remote=self.cluster.address,
        )
        return create_job(work_dir, name, request, description)


def _beat_s(launch: Launch) -> float:
    return launch.lease.expiry_s / job_files.BEATS_PER_EXPIRY


class _RaySlot(Slot):
    def __init__(
        self,
        backend: RayBackend,
        launch: Launch,
        job: JobFolder,
        output: ChildOutput,
        resources: NodeResources,
        carried: BucketJobs | None,
        is_new: bool,
    ):
        self.folder, self.messages = job.path, MessageFile(job.path / job_files.MESSAGES, is_shared=True)
        self.stage: RayStage | None = None
        self._backend, self._launch, self._job, self._output = backend, launch, job, output
        self._resources, self._carried, self._is_new = resources, carried, is_new

    def start(self, environment: Mapping[str, str]) -> "RayStage":
        log = self._launch.context.log
        if self._is_new:
            request = self._launch.request
            if self._carried is not None and spreads(request, self._resources):
                refuse_spread(request)
            needs = (
                OF_A_SPREAD_JOB
                if spreads(request, self._resources)
                else reserved(request, self._resources.total("GPU"))
            )
            if not self._resources.fit(needs):
                log.warning(f"no node of the Ray cluster has {_listed(needs)}; the job waits until one has")
            self._submit(environment, needs)
            log.info(f"Ray job {self._job.id}: reserves {_listed(needs)}")
            given, share = threads(request, needs)[THREADS], threads(request, needs, {})[THREADS]
            if given != share:
                log.info(
                    f"threads of each process: {given}, as {THREADS} or {OMP_THREADS} of this run says; what is "
                    f"reserved would be {share}"
                )
        else:
            log.info(f"follows the Ray job {self._job.id}, which an earlier run started")
        self.stage = RayStage(self._backend.cluster, self._launch, self._job, self._output, self.messages)
        return self.stage

    def _submit(self, environment: Mapping[str, str], needs: Mapping[str, float]) -> None:
        request, settings = self._launch.request, self._backend.settings
        variables = {**threads(request, needs), **job_environment(request), **environment}
        grace_s = self._launch.termination_timeout
        if self._carried is None:
            job_files.write_environment(self._job.path, variables)
            options: dict[str, Any] = {
                "entrypoint": f"exec {settings.python} -m {PROGRAM} {shlex.quote(str(self._job.path))}",
                "runtime_env": settings.runtime_env(grace_s),
            }
        else:
            job_files.write_environment(self._job.path, carried_environment(variables))
            options = submission(self._carried, self._job.path, settings, grace_s)
        rest = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU", "memory")}
        context = self._launch.context
        try:
            self._backend.cluster.submit(
                self._job.id,
                **options,
                metadata={"dagster/run-id": context.run_id, "tokenuq/stage": name_of(request)},
                entrypoint_num_cpus=needs.get("CPU"),
                entrypoint_num_gpus=needs.get("GPU"),
                entrypoint_memory=int(needs["memory"]) if "memory" in needs else None,
                entrypoint_resources=rest or None,
            )
        except ClusterAway as away:
            raise StageFailure(f"{name_of(request)}: the job was not submitted: {away}", crashed=True) from None


def _listed(needs: Mapping[str, float]) -> str:
    return ", ".join(
        f"{amount:,.0f} bytes of memory" if name == "memory" else f"{amount:g} {name}" for name, amount in needs.items()
    )
