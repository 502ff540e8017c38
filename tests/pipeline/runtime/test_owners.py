"""Owners are judged by pid only on this machine and in this PID namespace, and by their heartbeat elsewhere."""

import dataclasses
import os
import shutil
import time

import pytest

from tests.support.owners import elsewhere, write_heartbeat
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.runtime import owners
from tokenuq_pipeline.runtime.owners import FOLDER, Owner, beating, clean_heartbeats, expiry, heartbeat_of
from tokenuq_pipeline.runtime.processes import process_name

DEAD = 2**22 + 1
"""A pid above Linux's highest."""


def test_the_text_names_the_process_and_is_read_back():
    me = Owner.current()
    assert str(me).startswith(f"{process_name()}@") and Owner.parse(str(me)) == me and "/" not in str(me)
    assert Owner.parse("12-34") == Owner(12, 34) and Owner.parse("no owner") is None
    assert Owner.parse(str(elsewhere(host="a-b.c"))) == elsewhere(host="a-b.c")


@pytest.mark.parametrize("part", ["host", "boot", "namespace"])
def test_a_pid_says_nothing_of_an_owner_elsewhere(tmp_path, part):
    other = dataclasses.replace(Owner.current(), pid=DEAD, **{part: "another"})
    assert not other.is_local
    write_heartbeat(other, tmp_path)
    assert other.is_alive(tmp_path)
    write_heartbeat(other, tmp_path, age=61)
    assert not other.is_alive(tmp_path)


def test_an_owner_here_is_judged_by_its_pid_and_start_time(tmp_path):
    me = Owner.current()
    assert me.is_local and me.is_alive(tmp_path)
    assert not dataclasses.replace(me, pid=DEAD).is_alive(tmp_path)
    assert not dataclasses.replace(me, started=me.started - 1).is_alive(tmp_path)
    parent = Owner.parse(str(me).replace(process_name(), process_name(os.getppid())))
    write_heartbeat(parent, tmp_path, age=3600)
    assert parent.is_alive(tmp_path)


def test_the_format_of_earlier_versions_is_judged_by_pid(tmp_path):
    assert Owner.parse(process_name()).is_alive(tmp_path) and not Owner.parse("1-1").is_alive(tmp_path)


def test_an_owner_elsewhere_without_heartbeat_counts_by_the_age_of_what_names_it(tmp_path):
    other = elsewhere()
    assert (
        not other.is_alive(tmp_path) and other.is_alive(tmp_path, age_s=59) and not other.is_alive(tmp_path, age_s=61)
    )


def test_where_proc_shows_another_namespace_no_owner_is_judged_by_pid(tmp_path, monkeypatch):
    hidden = dataclasses.replace(Owner.current(), namespace="x1")
    monkeypatch.setattr(owners.Owner, "current", classmethod(lambda cls: hidden))
    assert not dataclasses.replace(hidden, pid=DEAD).is_local


def test_a_heartbeat_is_renewed_and_removed_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENUQ_LEASE_SECONDS", "0.3")
    with beating(tmp_path) as beat, beating(tmp_path) as same:
        assert same is beat and beat.path.parent == tmp_path / FOLDER
        shutil.rmtree(tmp_path / FOLDER)
        told = []
        with beat.told(lambda: told.append(heartbeat_of(Owner.current(), tmp_path).age_s)):
            deadline = time.monotonic() + 10
            while not told and time.monotonic() < deadline:
                time.sleep(0.01)
        assert abs(told[0]) < 5 and heartbeat_of(Owner.current(), tmp_path).expiry_s == 0.3
    assert not list((tmp_path / FOLDER).iterdir())


def test_a_heartbeat_in_a_copy_of_the_store_ends_after_two_missed_beats(tmp_path):
    parent = Owner.parse(str(Owner.current()).replace(process_name(), process_name(os.getppid())))
    write_heartbeat(parent, tmp_path / "store", age=30)
    assert parent.is_alive(tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    assert not parent.is_alive(tmp_path / "copy")
    write_heartbeat(parent, tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "new")
    assert parent.is_alive(tmp_path / "new")


def test_a_damaged_heartbeat_counts_by_its_age(tmp_path):
    path = write_heartbeat(elsewhere(), tmp_path)
    path.write_bytes(b"\xff{")
    assert elsewhere().is_alive(tmp_path)
    os.utime(path, (0, 0))
    assert not elsewhere().is_alive(tmp_path)


def test_heartbeats_of_a_week_ago_are_deleted(tmp_path):
    old, new = (
        write_heartbeat(elsewhere(1), tmp_path, age=8 * 86400),
        write_heartbeat(elsewhere(2), tmp_path, age=86400),
    )
    notes = old.with_name("notes.txt")
    notes.touch()
    os.utime(notes, (0, 0))
    clean_heartbeats(tmp_path)
    assert not old.exists() and new.exists() and notes.exists()


def test_heartbeats_behind_a_link_stay(tmp_path):
    old = write_heartbeat(elsewhere(), tmp_path / "elsewhere", age=8 * 86400)
    (tmp_path / ".owners").symlink_to(old.parent)
    clean_heartbeats(tmp_path)
    assert old.exists()


@pytest.mark.parametrize("text", ["0", "-1", "soon", "", "inf", "nan"])
def test_the_expiry_must_be_a_positive_number(text):
    with pytest.raises(InputError, match="TOKENUQ_LEASE_SECONDS: must be a positive number of seconds"):
        expiry({"TOKENUQ_LEASE_SECONDS": text})
