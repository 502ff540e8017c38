"""One holder at a time: taken over when the holder is dead or silent, and who lost a lease publishes nothing."""

import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.support.owners import elsewhere, write_heartbeat
from tokenuq_pipeline.runtime import leases as leases_module
from tokenuq_pipeline.runtime.lease_files import LeaseFiles
from tokenuq_pipeline.runtime.leases import LeaseLost, LeaseRecord, Leases
from tokenuq_pipeline.runtime.owners import Owner
from tokenuq_pipeline.runtime.processes import process_name

pytestmark = pytest.mark.slow

ASSET, DEAD = "study/mle/student", 2**22 + 1


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(leases_module, "POLL_S", 0.01)
    monkeypatch.setenv("TOKENUQ_LEASE_SECONDS", "0.6")


@pytest.fixture(params=["flock", "no flock", "no hard links"])
def leases(tmp_path, monkeypatch, request):
    def refuse(*_, **__):
        raise OSError(errno.ENOTSUP, "not supported")

    if request.param == "no flock":
        monkeypatch.setattr(fcntl, "flock", refuse)
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", refuse)
    return Leases(tmp_path)


def put(leases, owner, number=1, **parts):
    """Write a lease of another process."""
    assert leases.create(ASSET, LeaseRecord(number, 0.0, owner, "token", (ASSET,), **parts))


def take(leases):
    """Return the number under which this process gets the lease, and what it said before waiting."""
    said = []
    with leases.hold(ASSET, said.append) as lease:
        return lease.number, said


def in_thread(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_a_lease_is_held_for_the_block_and_its_numbers_grow(leases):
    assert leases.holder(ASSET) is None
    with leases.hold(ASSET, print, ["study/mle/student", "study/mle/evaluation"]) as lease:
        assert lease.number == 1 and leases.holder(ASSET) == Owner.current() == leases.holder("study/mle/evaluation")
        assert leases.holder("study/mle") is None and leases.holder("study/top/student") is None
        lease.require()
        lease.require()
        assert lease.number == 3 and not lease.lost
    assert leases.holder(ASSET) is None and take(leases) == (4, [])


def test_a_lease_is_released_after_an_error(leases):
    with pytest.raises(RuntimeError), leases.hold(ASSET, print):
        raise RuntimeError
    assert leases.holder(ASSET) is None


def test_the_second_waits_until_the_first_is_done(leases):
    said, got = [], threading.Event()

    def second():
        with leases.hold(ASSET, said.append):
            got.set()

    with leases.hold(ASSET, print):
        thread = in_thread(second)
        assert not got.wait(0.2) and len(said) == 1 and "which is making it" in said[0]
    assert got.wait(10)
    thread.join()


def test_of_two_that_take_a_free_lease_one_gets_it(leases):
    held, most = [], []

    def run():
        for _ in range(5):
            with leases.hold(ASSET, lambda _: None) as lease:
                held.append(lease.number)
                most.append(len(held))
                lease.require()
                held.pop()

    threads = [in_thread(run) for _ in range(4)]
    for thread in threads:
        thread.join()
    assert len(most) == 20 and max(most) == 1


def test_a_killed_holder_on_this_machine_is_followed_at_once(leases):
    put(leases, dataclasses.replace(Owner.current(), pid=DEAD))
    assert leases.holder(ASSET) is None and take(leases) == (2, [])


def test_the_child_of_a_killed_holder_keeps_the_lease_until_its_checkpoint_is_written(leases):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = dataclasses.replace(Owner.current(), pid=DEAD)
    put(leases, dead, child=process_name(child.pid))
    assert leases.holder(ASSET) == dead
    threading.Timer(0.1, child.communicate, [b"\n"]).start()
    assert take(leases) == (2, [f"{ASSET}: waits for the checkpoint of a run that was killed"])


def test_a_holder_elsewhere_is_followed_when_its_heartbeat_expires(leases):
    put(leases, elsewhere())
    write_heartbeat(elsewhere(), leases.home, expiry_s=0.1)
    assert leases.holder(ASSET) == elsewhere()
    assert take(leases) == (2, [f"{ASSET}: waits for process 7 on another-host, which is making it"])


def test_silence_has_to_last_while_it_is_looked_at(tmp_path):
    """The machine of both may have been suspended: the holder's next heartbeat is due then."""
    leases = Leases(tmp_path)
    put(leases, elsewhere())
    beat = write_heartbeat(elsewhere(), leases.home, age=3600)
    seen, record = leases_module._Seen(), leases.latest(ASSET)
    assert leases._is_free(record) and not leases._is_free(record, seen)
    os.utime(beat)
    assert not leases._is_free(record, seen)


def test_a_holder_elsewhere_that_still_beats_is_not_followed(tmp_path):
    leases = Leases(tmp_path)
    put(leases, elsewhere())
    beat = write_heartbeat(elsewhere(), leases.home, expiry_s=0.3)
    got = threading.Event()

    def second():
        with leases.hold(ASSET, lambda _: None):
            got.set()

    thread = in_thread(second)
    for _ in range(6):
        os.utime(beat)
        assert not got.wait(0.1)
    assert got.wait(10)
    thread.join()


def test_a_suspended_holder_loses_its_lease_and_may_not_publish(leases, monkeypatch):
    """It wakes up after another has taken the lease: as after SIGSTOP and SIGCONT."""
    monkeypatch.setenv("TOKENUQ_LEASE_SECONDS", "3600")
    with leases.hold(ASSET, print) as lease:
        put(leases, elsewhere(), number=2)
        with pytest.raises(LeaseLost) as lost, lease.publishing():
            pytest.fail("published without lease")
        assert str(lost.value) == (
            f"{ASSET}: process 7 on another-host has taken over, because this run had not answered for 3600 s; "
            "what this run made is not published"
        )
        assert lease.lost
    assert leases.latest(ASSET).owner == elsewhere() and not leases.latest(ASSET).released


def test_a_loss_is_noticed_at_the_next_heartbeat_and_the_child_is_told_no_more(leases):
    read_end, write_end = os.pipe()
    with leases.hold(ASSET, print) as lease, lease.confirmed_to(write_end):
        assert os.read(read_end, 1) == b"."
        put(leases, elsewhere(), number=2)
        deadline = time.monotonic() + 10
        while not lease.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lease.lost
        os.set_blocking(read_end, False)
        time.sleep(0.15)
        with pytest.raises(BlockingIOError):
            while os.read(read_end, 100):
                pass
    os.close(read_end), os.close(write_end)


def test_a_lease_whose_folder_was_deleted_is_lost(leases):
    with leases.hold(ASSET, print) as lease:
        for path in (leases.home / ".leases" / ASSET).iterdir():
            path.unlink()
        lease.look()
        with pytest.raises(LeaseLost):
            lease.require()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"owner": 1}'])
def test_a_damaged_lease_expires(leases, content):
    put(leases, elsewhere())
    path = leases.home / ".leases" / ASSET / "00000001.lease"
    path.write_bytes(content)
    threading.Timer(0.1, os.utime, [path, (0, 0)]).start()
    assert take(leases) == (2, [f"{ASSET}: waits until its lease, which cannot be read, expires"])


def test_a_machine_that_sees_changes_late_does_not_take_a_number_again(leases, monkeypatch):
    """A listing of before the last two holders, as a client of NFS may have it in its cache."""
    for number in (1, 2, 3):
        put(leases, elsewhere(), number=number, released=number < 3)
    put(leases, elsewhere(), number=4, released=True)
    real, calls = LeaseFiles._numbers, []

    def late(self, asset):
        calls.append(asset)
        return [1] if len(calls) == 1 else real(self, asset)

    monkeypatch.setattr(LeaseFiles, "_numbers", late)
    assert not leases.create(ASSET, LeaseRecord(2, 0.0, Owner.current(), "mine"))
    calls.clear()
    assert take(leases)[0] == 5


def test_files_of_earlier_numbers_stay_for_an_hour(leases):
    for _ in range(3):
        take(leases)
    folder = leases.home / ".leases" / ASSET
    os.utime(folder / "00000001.lease", (0, 0))
    take(leases)
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:08d}.lease" for number in (2, 3, 4)]


def test_an_interrupt_right_after_the_take_does_not_lock_this_process_out(leases):
    put(leases, Owner.current())
    assert take(leases)[0] == 2


def test_the_format_on_disk(leases):
    """Other versions on other machines read it."""
    with leases.hold(ASSET, print, [ASSET, "study/mle/evaluation"]) as lease:
        lease.note_child("12-34")
        record = json.loads((leases.home / ".leases" / ASSET / "00000001.lease").read_text())
    assert record.pop("token") and record == {
        "owner": str(Owner.current()),
        "makes": [ASSET, "study/mle/evaluation"],
        "child": "12-34",
        "released": False,
    }


def test_who_makes_an_asset_is_known_by_two_leases(tmp_path, monkeypatch):
    """A store of a large study has thousands, and each asset that is adopted asks."""
    leases, read = Leases(tmp_path), []
    for number in range(5):
        with leases.hold(f"study/other{number}/student", print):
            pass
    latest = leases._files.latest
    monkeypatch.setattr(leases._files, "latest", lambda asset: read.append(asset) or latest(asset))
    with leases.hold("study/mle/student", print, ["study/mle/student", "study/mle/evaluation"]):
        read.clear()
        assert leases.holder("study/mle/evaluation") == Owner.current()
        assert read == ["study/mle/evaluation", "study/mle/student"]
