"""Cloud Storage on loopback: `python -m tests.gcs_server PORT`, with the bucket "pod".

The emulator leaves out generations: the header of a download, and the conditions of requests. They
are added here, because TensorStore needs them. GET /status/403 makes every later request end with
that status, until GET /status/200.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator import server

VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")

ADDRESS = re.compile(r"(?:/download|/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?")


class Response(server.Response):
    def close(self):
        self["x-goog-generation"] = self._handler.generation
        super().close()


class Router(server.Router):
    failure = None  # the status of all answers

    def handle(self, method):
        handler = self._request_handler
        url = urlparse(handler.path)
        handler.generation = "0"
        if url.path.startswith("/status/"):
            status = int(url.path.rpartition("/")[2])
            Router.failure = None if status == 200 else HTTPStatus(status)
            return self._answer(HTTPStatus.OK)
        if Router.failure:
            return self._answer(Router.failure)
        found, query = ADDRESS.fullmatch(url.path), parse_qs(url.query)
        if found:
            name = unquote(found[2] or query.get("name", [""])[0])
            known = handler.storage.objects.get(found[1], {}).get(name, {})
            handler.generation = known.get("generation", "0")
            if query.get("ifGenerationMatch", [handler.generation]) != [handler.generation]:
                return self._answer(HTTPStatus.PRECONDITION_FAILED)
            if query.get("ifGenerationNotMatch") == [handler.generation]:
                return self._answer(HTTPStatus.NOT_MODIFIED)
        return super().handle(method)

    def _answer(self, status):
        server._read_raw_data(self._request_handler)
        response = Response(self._request_handler)
        response.status = status
        reason = {"message": status.phrase, "code": status.value, "errors": []}
        response.write_file(json.dumps({"error": reason}), "application/json")
        response.close()


@contextlib.contextmanager
def emulator():
    """Yields the process of a server, which all libraries of this process and its children use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.gcs_server", str(port)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    before = {name: os.environ.get(name) for name in VARIABLES}
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        os.environ.update(dict.fromkeys(VARIABLES, f"http://127.0.0.1:{port}"))
        yield process
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        process.kill()
        process.wait()


server.Response, server.Router = Response, Router

if __name__ == "__main__":
    server.create_server("127.0.0.1", int(sys.argv[1]), True, default_bucket="pod").run()
