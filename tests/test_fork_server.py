"""How the processes that others start and end with them begin and end."""

from __future__ import annotations

import os
import pickle
import signal
from multiprocessing.connection import Connection

import pytest
import torch

from vsim_fast.pipeline.decode_worker import Ring
from vsim_fast.pipeline.fork_server import ForkServer, start_python

ECHO = """
import sys
from multiprocessing.connection import Connection

def main():
    connection = Connection(int(sys.argv[1]))
    while (message := connection.recv()) is not None:
        connection.send(message)
"""


def test_an_interrupt_never_reaches_a_started_process(tmp_path, monkeypatch, capfd):
    """Neither before its interpreter is up nor later."""
    (tmp_path / "echo_of_tests.py").write_text(ECHO)
    monkeypatch.syspath_prepend(tmp_path)
    process, connection = start_python("echo_of_tests")
    with connection:
        for message in ("starting", "running"):
            os.kill(process.pid, signal.SIGINT)
            connection.send(message)
            assert connection.recv() == message
        connection.send(None)
    assert process.wait() == 0 and capfd.readouterr().err == ""
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_an_interrupt_while_they_import_is_quiet(capfd):
    """Their users close the connections, and that ends them."""
    modules = ("vsim_fast.pipeline.decode_worker", "vsim_fast.batch.device_worker", "vsim_fast.frame_pairs.drawing")
    started = [start_python(module) for module in modules]
    for process, connection in started:
        os.kill(process.pid, signal.SIGINT)
        connection.close()
    assert [process.wait() for process, _ in started] == [0] * 3
    assert capfd.readouterr().err == ""


def test_the_fork_server_ends_quietly_when_its_user_does_not_wait_for_an_answer(monkeypatch, capfd):
    def terminated(connection):
        raise SystemExit(143)

    server, ring = ForkServer(), Ring(1, (3, 2, 2), torch.uint8)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Connection, "recv", terminated)
        server.start(ring, pickle.dumps((ring, None)))
    server.close()
    assert server._process.returncode == 0 and capfd.readouterr().err == ""
