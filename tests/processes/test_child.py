"""How processes begin and end around the fork server."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program that ends within seconds."""
    words = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)


def test_start_that_is_broken_off_is_silent() -> None:
    """A stop, or SIGKILL, while a process is being started leaves no trace on stderr between the JSON lines."""
    done = run(
        """
        import os
        from multiprocessing import forkserver
        from b2s.processes.child import process_context

        process_context()
        reader, writer = forkserver.connect_to_new_process([])
        os.close(writer)
        while os.read(reader, 100):
            pass
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_child_keeps_the_interpreter_from_ending() -> None:
    """Children ignore SIGTERM, so whatever left them alive, the end of the program is not waited for in vain."""
    done = run(
        """
        import signal, time
        from b2s.processes.child import process_context

        child = process_context().Process(target=time.sleep, args=(600,), daemon=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child.start()
        print(child.pid)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_resource_tracker_ends_before_the_forkserver() -> None:
    """From Python 3.12.10 on the supervisor ends only after the tracker, so nothing that outlives it may keep that up.

    What those versions do at their end is done here by hand.
    """
    done = run(
        """
        import os, time
        from multiprocessing import forkserver, resource_tracker
        from b2s.processes.child import process_context

        process_context()
        tracker = resource_tracker._resource_tracker
        os.close(tracker._fd)
        deadline = time.monotonic() + 10
        while os.waitpid(tracker._pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.02)
        print(time.monotonic() < deadline, os.waitpid(forkserver._forkserver._forkserver_pid, os.WNOHANG))
        os._exit(0)
        """
    )
    assert (done.stdout, done.stderr) == ("True (0, 0)\n", "")


def test_killed_resource_tracker_is_silent() -> None:
    """Somebody kills the tracker of semaphores: Python starts another, and stderr holds nothing but JSON lines."""
    done = run(
        """
        import os, signal
        from multiprocessing import resource_tracker
        from b2s.processes.child import process_context

        context = process_context()
        tracker = resource_tracker._resource_tracker
        os.kill(tracker._pid, signal.SIGKILL)
        os.waitid(os.P_PID, tracker._pid, os.WEXITED | os.WNOWAIT)
        process = context.Process(target=print, args=(context.Queue() is None,))
        process.start()
        process.join()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_forkserver_that_dies_before_a_start_is_replaced() -> None:
    """It refuses connections already, and is no zombie yet: nothing was sent to it, so another one is asked."""
    done = run(
        """
        import os, socket, tempfile
        from multiprocessing import forkserver
        from b2s.processes.child import process_context
        from b2s.processes.forkserver import start

        process = process_context().Process(target=print, args=("started",))
        dying = forkserver._forkserver._forkserver_pid
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(directory + "/deaf")
            forkserver._forkserver._forkserver_address = directory + "/deaf"
            start(process)
        process.join()
        assert forkserver._forkserver._forkserver_pid != dying
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_fork_that_fails_says_why() -> None:
    """What keeps the forkserver from starting is told on stderr, not lost with the process."""
    done = run(
        """
        import os
        from b2s.processes import forkserver

        pid = forkserver._fork("", ["pass"], [1 << 20])
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert done.stdout == "1\n"
    assert "Bad file descriptor" in done.stderr
