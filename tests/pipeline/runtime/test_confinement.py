"""Limits that a process puts on itself, each tried in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

pytestmark = pytest.mark.slow

START = "import os, sys, signal\nfrom pathlib import Path\nfrom tokenuq_pipeline.runtime import confinement\n"


def tried(python, *arguments):
    command = [sys.executable, "-c", START + textwrap.dedent(python), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_files_are_written_in_the_named_folder_only(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "table").write_text("precious")
    done = tried(
        """
        inside, outside = map(Path, sys.argv[1:])
        before = open(outside / "open", "w")
        if not confinement.write_only_in([inside, Path("/no/such/folder")]):
            sys.exit(77)
        (inside / "spilled").write_text("x")
        (inside / "spilled").unlink()
        before.write("open before")
        before.close()
        open(os.devnull, "w").close()
        def socket_to_a_port():
            import socket
            socket.create_connection(("127.0.0.1", 9))
        attacks = {
            "write": lambda: open(outside / "table", "r+b"), "append": lambda: open(outside / "table", "a"),
            "replace": lambda: open(outside / "table", "w"), "truncate": lambda: os.truncate(outside / "table", 0),
            "create": lambda: open(outside / "new", "x"), "remove": lambda: os.unlink(outside / "table"),
            "folder": lambda: os.mkdir(outside / "new"), "link": lambda: os.symlink("/etc", outside / "new"),
            "move": lambda: os.rename(outside / "table", inside / "table"),
            "hard link": lambda: os.link(outside / "table", inside / "table"),
            "own memory": lambda: open("/proc/self/mem", "r+b"), "program": lambda: os.execv("/bin/true", ["true"]),
            "fifo": lambda: os.mkfifo(outside / "new"), "network": socket_to_a_port,
        }
        for name, attack in attacks.items():
            try:
                attack()
            except PermissionError:
                continue
            except OSError as error:
                if name == "hard link" or name == "move":  # refused as a step across a border: EXDEV
                    continue
                if name == "network":  # kernels before 6.7 do not know it
                    continue
            print(name)
        """,
        inside,
        outside,
    )
    if done.returncode == 77:
        pytest.skip("the kernel or the container refuses Landlock")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (outside / "table").read_text() == "precious" and (outside / "open").read_text() == "open before"
    assert sorted(path.name for path in outside.iterdir()) == ["open", "table"]


def test_memory_is_limited_and_the_refusal_is_an_exception():
    done = tried(
        """
        confinement.limit_memory(200 * 2**20)
        kept = bytearray(100 * 2**20)
        try:
            bytearray(150 * 2**20)
        except MemoryError:
            print("refused")
        """
    )
    assert done.stdout == "refused\n", done.stderr


def test_time_is_limited_whatever_python_does_and_can_be_paused():
    done = tried("confinement.limit_time(0.2)\nsum(range(10**11))")
    assert done.returncode == -signal.SIGALRM
    done = tried(
        """
        import time
        confinement.limit_time(0.5)
        left = confinement.pause_time()
        time.sleep(0.8)
        confinement.limit_time(left)
        print(0 < left <= 0.5)
        """
    )
    assert done.stdout == "True\n"


def test_a_process_ends_with_its_parent():
    done = tried(
        """
        child = os.fork()
        if not child:
            confinement.end_with_parent(os.getppid())
            print(os.getpid(), flush=True)
            signal.pause()
        import time
        time.sleep(0.3)
        os._exit(0)
        """
    )
    pid = int(done.stdout)
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.kill(pid, 0)
            time.sleep(0.02)
    assert tried("confinement.end_with_parent(os.getppid() + 1)\nprint('alive')").returncode == -signal.SIGKILL
