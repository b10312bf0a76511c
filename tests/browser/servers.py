"""What pages are served by: the standard library for files, and the real TensorBoard."""

import json
import os
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from urllib.error import URLError
from urllib.request import urlopen

START = 60.0
"""Seconds for TensorBoard to start; it imports TensorFlow, which takes 7 on an idle core."""
END = 60.0


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that leaves a page hangs up on what it still loads, which is no error."""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of a page that is served."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder's files on a free port of this machine; give the address."""
    with _Server(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Run TensorBoard on a run folder; give its address once it knows the run's scalars."""
    command = str(Path(sysconfig.get_path("scripts")) / "tensorboard")
    port = _free_port()
    address = f"http://127.0.0.1:{port}/"
    # The page shows the folder's name as it was given: the last three parts do.
    above = folder.parents[2]
    logdir = str(folder.relative_to(above))
    place = ["--host", "127.0.0.1", "--port", str(port), "--logdir", logdir]
    with subprocess.Popen(
        [command, *place],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=above,
        start_new_session=True,
    ) as process:
        try:
            _wait_for_scalars(process, address)
            yield address
        finally:
            process.terminate()
            try:
                # Its data server writes to the same pipe, whose end comes when both are gone.
                process.communicate(timeout=END)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def _wait_for_scalars(process: subprocess.Popen[str], address: str) -> None:
    end = monotonic() + START
    while not _tags(address):
        assert process.poll() is None, f"TensorBoard ended: {process.communicate()[0]}"
        assert monotonic() < end, f"TensorBoard shows nothing after {START:.0f} s"
        sleep(0.1)


def _tags(address: str) -> list[str]:
    try:
        with urlopen(f"{address}data/plugin/scalars/tags", timeout=START) as answer:
            return [tag for tags in json.load(answer).values() for tag in tags]
    except URLError:  # it does not listen yet
        return []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
