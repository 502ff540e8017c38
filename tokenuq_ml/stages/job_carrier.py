"""What a job does for a stage whose files are in a bucket: fetches what it reads, and sends what it writes.

Nobody but this node sees the stage's folder of checkpoints, so the stage works on while the service is away. Who has
taken the job for dead meanwhile has deleted its objects: then nothing is sent any more, and the stage is killed.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from tokenuq_ml.background import looking
from tokenuq_ml.errors import InputError
from tokenuq_ml.file_hashes import sha256_of
from tokenuq_ml.object_store.bucket import StoreAway
from tokenuq_ml.object_store.checkpoints import LOOK_S, CheckpointCopies
from tokenuq_ml.object_store.mirror import Mirror
from tokenuq_ml.stages import job_files
from tokenuq_ml.stages.job_files import JobDescription, JobEnd
from tokenuq_ml.stages.job_objects import (
    CARRIED,
    SAID,
    CarriedJob,
    SentMessages,
    SentOutput,
    StoredFile,
    StoredOutputs,
    key_in,
    outputs_file,
    relocated_description,
    relocated_request,
)
from tokenuq_ml.stages.request import StageRequest
from tokenuq_ml.tables.integrity import REPAIR, unlisted

RETRY_S = 2.0
"""Seconds between two tries to send the end of a job while the service is away."""


class Taken(Exception):
    """Another run has taken the job for dead, or has removed it: nobody waits for it."""


class JobCarrier:
    """Carries the files of a job between its node and the bucket.

    Args:
        mirror: of the store, on this node.
        place: of the job, relative to the store.

    Raises:
        Taken: the job was removed before it has started.
        InputError: the bucket cannot be read or written.

    Attributes:
        folder: of the job, on this node.
        description: what it runs.
        request: what the stage makes, with the folders of this node.
        environment: of the stage.
        taken: the job's objects are gone.
    """

    def __init__(self, mirror: Mirror, place: str):
        self._mirror, self._bucket, self._key = mirror, mirror.bucket, place
        self._quick = mirror.bucket.quick()
        self.folder, self.taken = mirror.home / place, False
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._carried = CarriedJob.model_validate_json(self._given(CARRIED))
        old, new = self._carried.home, str(mirror.home)
        self.description = relocated_description(
            JobDescription.model_validate_json(self._given(job_files.DESCRIPTION)), old, new
        )
        request = StageRequest.model_validate_json(self._given(job_files.REQUEST))
        self.request = relocated_request(request, old, new)
        # Of a file that is not read, this node has no copy.
        for record in self.request.recorded.values():
            record.is_partial = True
        self.request.write(self.folder / job_files.REQUEST)
        # With the folder of this node.
        job_files.write_json(self.folder / CARRIED, self._carried.model_copy(update={"home": new}))
        for asset in self.request.assets.values():
            for output in asset.outputs.values():
                Path(output).mkdir(parents=True)
        (self.folder / job_files.LAUNCHER).write_bytes(self._given(job_files.LAUNCHER))
        self.environment = self._take_environment()
        for file in (job_files.MESSAGES, job_files.STDOUT, job_files.STDERR):
            (self.folder / file).touch()
        self._messages = SentMessages(
            self._bucket, self._said(job_files.MESSAGES), self.folder / job_files.MESSAGES, self._upload
        )
        self._output = [
            SentOutput(self._bucket, self._said(name), self.folder / name)
            for name in (job_files.STDOUT, job_files.STDERR)
        ]
        self._next_beat, self._told = 0.0, False
        self._sending = threading.Lock()
        self._beat()

    def _given(self, name: str) -> bytes:
        found = self._bucket.read(key_in(self._key, name))
        if found is None:
            raise Taken(f"{self._mirror.address}/{self._key} has no {name}: the job was removed before it has started")
        return found[0]

    def _take_environment(self) -> dict[str, str]:
        (self.folder / job_files.ENVIRONMENT).touch(0o600)
        (self.folder / job_files.ENVIRONMENT).write_bytes(self._given(job_files.ENVIRONMENT))
        self._bucket.delete([key_in(self._key, job_files.ENVIRONMENT)])
        return job_files.take_environment(self.folder)

    def _said(self, name: str) -> str:
        return key_in(self._key, SAID, name)

    @contextlib.contextmanager
    def hearing(self, stop: Callable[[bytes], None]) -> Iterator[None]:
        """Keep the heartbeat going, and copy what the launcher says, until the block ends.

        Args:
            stop: called with what the launcher has said until now, each time.
        """

        def hear() -> bool:
            with self._away():
                self._beat()
                stop(self._hear())
            return self.taken

        with looking(hear, self._carried.look_s, "job-launcher"):
            yield

    def bring(self) -> None:
        """Download what the stage reads, compared with its hashes, and the checkpoint that it resumes from.

        Raises:
            InputError: an object is missing or damaged.
            StoreAway: the service does not answer.
        """
        reads = self._carried.reads
        wrong = self._mirror.fetch_all(reads)
        for file in reads:
            if file.path in wrong:
                raise InputError(f"{wrong[file.path]}; {REPAIR}")
        for name, record in self.request.recorded.items():
            folder = Path(self.request.inputs[name])
            # Of another version of the asset, which this node has read before.
            for path in unlisted(folder, (folder / one for one in record.files)):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self._checkpoints = CheckpointCopies(self._mirror, self._asset)
        self._checkpoints.bring()

    @property
    def _asset(self) -> str:
        """Return the stage's first asset, which names its folder of checkpoints."""
        return "/".join(Path(self._key).parts[1:-2])

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Send messages, results, output and checkpoints while the stage works, until the block ends."""

        def send() -> bool:
            with self._away():
                self._send()
            return self.taken

        def send_checkpoints() -> bool:
            with self._away():
                self._require_own()
                self._checkpoints.send()
            return self.taken

        with ExitStack() as threads:
            threads.enter_context(looking(send, self._carried.look_s, "job-messages"))
            threads.enter_context(looking(send_checkpoints, LOOK_S, "job-checkpoints"))
            yield

    def finish(self, end: JobEnd, has_worked: bool) -> None:
        """Send what is left, and how the stage ended; wait for a service that is away as long as a run might follow.

        Args:
            end: of the stage.
            has_worked: the stage has started, and may have written a checkpoint.

        Raises:
            Taken: nobody waits for it any more.
            StoreAway: the service does not come back.
        """
        deadline = time.monotonic() + self.description.unattended_s
        while True:
            try:
                self._require_own()
                self._send(is_end=True)
                if has_worked:
                    self._checkpoints.send()
                ended = end.model_copy(update={"messages": self._messages.sent})
                self._bucket.write(key_in(self._key, job_files.ENDED), ended.model_dump_json().encode())
                return
            except StoreAway as away:
                if time.monotonic() > deadline:
                    raise
                self._tell(away)
                time.sleep(RETRY_S)

    def clear(self) -> None:
        """Delete the job's folder on this node; of what was uploaded, the next stage here needs no download."""
        for stage, asset in self.request.assets.items():
            if (self.folder / outputs_file(stage)).exists() and not self.taken:
                for output, folder in asset.outputs.items():
                    self._mirror.adopt(Path(folder), asset.places[output])
        shutil.rmtree(self.folder, ignore_errors=True)

    def _beat(self) -> None:
        if time.monotonic() >= self._next_beat:
            self._quick.write(key_in(self._key, job_files.BEAT), b"")
            self._next_beat = time.monotonic() + self.description.expiry_s / job_files.BEATS_PER_EXPIRY

    def _hear(self) -> bytes:
        """Return what the launcher has said until now, which is then in the job's folder."""
        found = self._quick.read(key_in(self._key, job_files.LAUNCHER))
        if found is None:
            self._note_taken()
        path = self.folder / job_files.LAUNCHER
        if path.read_bytes() != found[0]:
            path.write_bytes(found[0])
        return found[0]

    def _require_own(self) -> None:
        if self.taken or self._quick.info(key_in(self._key, job_files.LAUNCHER)) is None:
            self._note_taken()

    def _note_taken(self) -> NoReturn:
        self.taken = True
        with contextlib.suppress(StoreAway):
            # It may have been written since the others were deleted.
            self._quick.delete([key_in(self._key, job_files.BEAT)])
        raise Taken(f"{self._mirror.address}/{self._key} was removed: another run has taken this job for dead")

    def _send(self, is_end: bool = False) -> None:
        with self._sending:
            self._require_own()
            while self._messages.send():
                pass
            for output in self._output:
                output.send_end() if is_end else output.send()

    def _upload(self, stage: str) -> None:
        """Upload the outputs of an asset under the names that its manifest will give them, then their list."""
        asset = self.request.assets[stage]
        stored = StoredOutputs(files={})
        for output, folder in asset.outputs.items():
            paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            named = [
                (_stored(path, f"{asset.places[output]}/{path.relative_to(folder).as_posix()}"), path) for path in paths
            ]
            self._mirror.upload_all(named)
            stored.files[output] = [file for file, _ in named]
        content = stored.model_dump_json().encode()
        self._bucket.write(key_in(self._key, outputs_file(stage)), content)
        (self.folder / outputs_file(stage)).write_bytes(content)

    @contextlib.contextmanager
    def _away(self) -> Iterator[None]:
        """Say once, in the log of the job, that the bucket cannot be used; the next look tries again."""
        try:
            yield
            self._told = False
        except Taken as taken:
            self._tell(taken)
        except (InputError, OSError) as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            print(error, flush=True)


def _stored(path: Path, name: str) -> StoredFile:
    return StoredFile(path=name, bytes=path.stat().st_size, sha256=sha256_of(path))
