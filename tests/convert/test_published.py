"""Published weights are downloaded whole, once, or not at all."""

import dataclasses
import hashlib
import http.server
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jax
import numpy as np
import pytest

import gnet_jax
from gnet_jax.cli.main import main
from gnet_jax.config import Config, UserError
from gnet_jax.convert.published import PUBLISHED, Published, fetch, locate
from gnet_jax.convert.read import convert
from gnet_jax.convert.start import with_start
from gnet_jax.data import download
from tests.convert.caffe_files import NARROW, caffemodel_bytes, random_layers

# Larger than the pieces in which a file is downloaded.
BODY = caffemodel_bytes(random_layers(dataclasses.replace(NARROW, aux_widths=(7, 900))))
FILE = "net.caffemodel"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves FILE in the good and bad ways that the first part of the path names."""

    body = BODY
    sent: list[tuple[str, str | None]]  # the first part of each path, and the range asked for
    stop: threading.Event

    def do_GET(self) -> None:
        way = self.path.split("/")[1]
        self.sent.append((way, self.headers["Range"]))
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        match way:
            case "missing":
                return self.send_error(404)
            case "moved":
                self.send_response(302)
                self.send_header("Location", f"/good/{FILE}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            case "strange":
                self.send_response(302)
                self.send_header("Location", unquote(self.path.split("/")[2], "latin1"))
                self.send_header("Content-Length", "0")
                return self.end_headers()
            case "length":
                self.send_response(200)
                self.send_header("Content-Length", "abc")
                return self.end_headers()
            case "wrong":
                return self.answer(200, b"<html>sign in</html>")
            case "whole":  # knows no ranges
                return self.answer(200, self.body)
        if start >= len(self.body):
            return self.send_error(416)
        rest = self.body[start:]
        half = len(rest) // 2 if way in ("cut", "stall") else len(rest)
        self.answer(206 if start else 200, rest[:half], len(rest))
        if way == "stall":
            self.wfile.flush()
            self.stop.wait(20)
        if way == "slow":
            time.sleep(1)
        return None

    def answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server, whose `offer(*ways)` makes the weights "caffe" a file that is served like this."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    Server.sent, Server.stop = [], threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()

        def offer(*ways: str, file: str = FILE, **fields: Any) -> Published:
            urls = tuple(f"http://127.0.0.1:{running.server_port}/{way}/{file}" for way in ways)
            fields = fields or {"sha256": hashlib.sha256(Server.body).hexdigest()}
            facts = {"megabytes": 1, "origin": "here", "license": "mit", "accuracy": "high"}
            monkeypatch.setitem(PUBLISHED, "caffe", Published(urls, **facts, **fields))
            return PUBLISHED["caffe"]

        yield offer
        Server.stop.set()
        running.shutdown()


def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache/gnet_jax/weights" / FILE


@pytest.mark.parametrize(
    "ways",
    [
        ("good",),
        ("whole",),
        ("moved",),
        ("missing", "good"),
        ("wrong", "good"),
        ("cut", "good"),
        ("cut", "whole"),
        ("stall", "good"),
        ("cut", "wrong", "good"),
    ],
    ids="-".join,
)
def test_the_right_file_comes_from_the_first_server_that_has_it(server, tmp_path, ways):
    server(*ways)
    assert fetch("caffe") == cached(tmp_path)
    assert cached(tmp_path).read_bytes() == BODY
    resumed = [way for way, range_asked in Server.sent if range_asked is not None]
    assert resumed == (list(ways[1:]) if ways[0] in ("cut", "stall") else [])
    asked = len(Server.sent)
    assert fetch("caffe") == cached(tmp_path)
    assert len(Server.sent) == asked  # the second time, it is in the cache


@pytest.mark.parametrize(
    ("way", "problem"),
    [("missing", "404"), ("wrong", "another file"), ("cut", "failed"), ("stall", "no answer")],
)
def test_without_the_right_file_the_error_says_how_to_install_it(server, tmp_path, way, problem):
    offered = server(way)
    with pytest.raises(UserError) as caught:
        fetch("caffe")
    for part in (offered.urls[0], problem, str(cached(tmp_path)), offered.sha256):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cached(tmp_path).exists()
    cached(tmp_path).write_bytes(BODY)  # as the error says
    assert fetch("caffe") == cached(tmp_path)


@pytest.mark.parametrize(
    ("part", "ranges"),
    [
        (BODY[:1000], ["bytes=1000-"]),
        (BODY, [f"bytes={len(BODY)}-"]),
        (b"x" * 1000, ["bytes=1000-", None]),
        (BODY + b"x", [f"bytes={len(BODY) + 1}-", None]),
    ],
    ids=["half", "whole", "of another file", "too long"],
)
def test_a_broken_download_resumes_unless_its_part_is_wrong(server, tmp_path, part, ranges):
    server("good")
    cached(tmp_path).parent.mkdir(parents=True)
    cached(tmp_path).with_name(f"{FILE}.partial").write_bytes(part)
    assert fetch("caffe").read_bytes() == BODY
    assert [asked for _, asked in Server.sent] == ranges


def test_a_server_that_knows_no_ranges_is_asked_once(server, tmp_path):
    server("whole")
    cached(tmp_path).parent.mkdir(parents=True)
    cached(tmp_path).with_name(f"{FILE}.partial").write_bytes(BODY[:1000])
    assert fetch("caffe").read_bytes() == BODY
    assert len(Server.sent) == 1


def test_a_page_instead_of_the_file_does_not_discard_the_part(server, tmp_path):
    partial = cached(tmp_path).with_name(f"{FILE}.partial")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(BODY[:1000])
    server("wrong")
    with pytest.raises(UserError, match="another file"):
        fetch("caffe")
    server("wrong", "good")
    assert fetch("caffe").read_bytes() == BODY
    assert Server.sent == [("wrong", "bytes=1000-")] * 2 + [("good", "bytes=1000-")]
    assert not list(partial.parent.glob("*.kept"))
    assert not partial.exists()


@pytest.mark.parametrize(
    "way",
    [
        "length",
        "strange/http%3A%2F%2F%5B%3A%3A1",  # http://[::1
        "strange/http%3A%2F%2Fa..b%2F",
        "strange/http%3A%2F%2F%FF%FE%2F",  # not UTF-8
    ],
)
def test_the_next_server_is_asked_after_a_malformed_answer(server, way):
    server(way, "good")
    assert fetch("caffe").read_bytes() == BODY
    assert Server.sent[-1] == ("good", None)


def test_a_corrupt_file_in_the_cache_is_downloaded_again(server, tmp_path):
    server("good")
    fetch("caffe")
    cached(tmp_path).write_bytes(BODY[:-1])
    assert fetch("caffe").read_bytes() == BODY


def start(offered: Published) -> subprocess.Popen:
    """Another process that fetches the weights and prints their path."""
    code = (
        "import json, sys; from gnet_jax.convert.published import *\n"
        "PUBLISHED['caffe'] = Published(*json.loads(sys.argv[1]))\n"
        "print(fetch('caffe'))"
    )
    run = [sys.executable, "-c", code, json.dumps(offered)]
    return subprocess.Popen(run, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_download_once(server, tmp_path):
    offered = server("slow")
    processes = [start(offered) for _ in range(2)]
    assert {process.communicate()[0].strip() for process in processes} == {str(cached(tmp_path))}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(Server.sent) == 1


def test_a_killed_download_leaves_no_file_and_no_lock_and_resumes(server, tmp_path):
    process = start(server("stall"))
    partial = cached(tmp_path).with_name(f"{FILE}.partial")
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not cached(tmp_path).exists()
    done = partial.stat().st_size
    server("good")
    assert fetch("caffe").read_bytes() == BODY
    assert Server.sent[-1] == ("good", f"bytes={done}-")


def test_a_file_is_also_verified_by_its_sha1_alone(server):
    server("wrong", "good", sha1=hashlib.sha1(BODY).hexdigest())
    assert fetch("caffe").read_bytes() == BODY


def test_a_model_is_the_same_by_name_by_path_and_through_a_folder(server, tmp_path, capsys):
    server("good")
    (tmp_path / "mine.caffemodel").write_bytes(BODY)
    by_name, by_path = gnet_jax.load("caffe"), gnet_jax.load(tmp_path / "mine.caffemodel")
    convert("caffe", tmp_path / "folder")
    for other in (by_path, gnet_jax.load(tmp_path / "folder")):
        assert (other.model, other.preprocessing) == (by_name.model, by_name.preprocessing)
        assert other.class_names == by_name.class_names
        jax.tree.map(np.testing.assert_array_equal, other.variables, by_name.variables)
    _, started = with_start(Config(init="caffe"))
    assert started is not None
    assert started.source == by_name.source
    assert by_name.source["license"] == "mit"
    assert "license: mit\n" in (tmp_path / "folder/README.md").read_text("utf-8")


def test_a_path_has_priority_over_a_name_and_this_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "caffe").write_bytes(BODY)
    assert locate("caffe") == Path("caffe")
    assert str(tmp_path / "caffe") in capsys.readouterr().err
    assert locate(tmp_path / "caffe") == tmp_path / "caffe"
    assert locate("absent/net.pth") == Path("absent/net.pth")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments", [["predict", "cafe", "x.jpg"], ["convert", "cafe", "x"], ["download", "cafe"]]
)
def test_a_misspelt_name_gets_a_suggestion(arguments, capsys):
    assert main(arguments) == 2
    assert "did you mean caffe?" in capsys.readouterr().err


def test_the_list_has_the_facts_of_every_entry_and_no_download_starts(server, capsys):
    assert main(["download", "--list"]) == 0
    out = capsys.readouterr().out
    for name, each in PUBLISHED.items():
        for part in (name, each.license, each.accuracy, each.urls[0], each.origin):
            assert part in out
        assert each.sha256 or each.sha1
    assert not Server.sent
    assert main(["download"]) == 2
    assert main(["download", "caffe", "--list"]) == 2


def test_download_prints_the_path(server, tmp_path, capsys):
    server("good")
    assert main(["download", "caffe"]) == 0
    assert capsys.readouterr().out.strip() == str(cached(tmp_path))


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    server("good")
    cached(tmp_path).parent.parent.mkdir(parents=True)
    cached(tmp_path).parent.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=str(cached(tmp_path))):
        fetch("caffe")
