"""A model folder goes to a Hub and back: a server on this machine that answers as the Hub does."""

import base64
import dataclasses
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from typing import ClassVar

import jax
import numpy as np
import pytest

import gnet_jax
from gnet_jax.cli.main import main
from gnet_jax.model_folder import WeightsError, write_folder
from gnet_jax.model_folder.folder import CARD_FILE, CONFIG_FILE, read_folder
from tests.convert.caffe_files import caffemodel_bytes, random_layers
from tests.convert.conftest import small_folder

pytest.importorskip("huggingface_hub", reason="the extra [hub] is not installed")

SHA = "0123456789" * 4


class Hub(http.server.BaseHTTPRequestHandler):
    """Keeps the files of repositories in memory, without LFS. Needs the token hf_test to write."""

    protocol_version = "HTTP/1.1"
    repos: ClassVar[dict[str, dict[str, bytes]]] = {}
    private: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.*|/tree/.*)?", path):
            if found[1] not in self.repos:
                return self.answer({"error": "Repository not found"}, 401)
            files = self.repos[found[1]]
            if "/tree/" in path:
                return self.answer([
                    {"type": "file", "path": n, "size": len(f), "oid": hashlib.sha1(f).hexdigest()}
                    for n, f in files.items()
                ])  # fmt: skip
            siblings = [{"rfilename": name} for name in files]
            private = found[1] in self.private
            info = {"id": found[1], "sha": SHA, "private": private, "siblings": siblings}
            return self.answer(info)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.*)", path):
            body = self.repos[found[1]][found[2]]
            etag = hashlib.sha256(body).hexdigest()
            return self.answer(body, headers={"ETag": f'"{etag}"', "X-Repo-Commit": SHA})
        return self.answer({}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers["Authorization"] != "Bearer hf_test":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(text)
            repo = f"{asked['organization']}/{asked['name']}"
            # Older versions of huggingface_hub send "private" instead of "visibility".
            private = asked.get("private") or asked.get("visibility") == "private"
            if private and repo not in self.repos:
                self.private.add(repo)
            self.repos.setdefault(repo, {})
            return self.answer({"url": f"{self.url}/{repo}", "id": repo, "name": repo})
        repo = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(text)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer({"files": [{"path": name, **modes} for name in names]})
        for line in map(json.loads, text.splitlines()):
            if line["key"] == "file":
                self.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = f"{self.url}/{repo}/commit/{SHA}"
        return self.answer({"commitUrl": commit, "commitOid": SHA, "success": True})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, body, status=200, headers=()):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path):
    """Runs `gnet` with the local Hub, as another process, because HF_ENDPOINT is read at import."""
    Hub.repos.clear()
    Hub.private.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": "hf_test",
        }

        def gnet(*arguments, **others) -> subprocess.CompletedProcess:
            command = [sys.executable, "-m", "gnet_jax", *map(str, arguments)]
            environment = os.environ | settings | others
            return subprocess.run(command, env=environment, text=True, capture_output=True)

        yield gnet
        server.shutdown()


def test_a_folder_comes_back_from_the_hub_as_it_was_with_its_own_card(hub, tmp_path):
    write_folder(tmp_path / "mine", small_folder(image_size=20))
    card = tmp_path / "mine" / CARD_FILE
    card.write_text(card.read_text("utf-8") + "\nTrained on my photos.\n", "utf-8")
    pushed = hub("push", tmp_path / "mine", "me/ants")
    assert (pushed.returncode, pushed.stderr) == (0, "")
    assert "http://127.0.0.1" in pushed.stdout
    text = Hub.repos["me/ants"][CARD_FILE].decode()
    assert 'gnet_jax.load("hf:me/ants")' in text
    assert "Trained on my photos." in text
    assert 'gnet_jax.load("mine")' in card.read_text("utf-8")

    for offline in ("0", "1"):  # the second time, the files are in the cache
        back = tmp_path / f"back{offline}"
        converted = hub("convert", "hf:me/ants", back, HF_HUB_OFFLINE=offline)
        assert converted.returncode == 0, converted.stderr
        found, expected = read_folder(back), read_folder(tmp_path / "mine")
        jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
        assert dataclasses.replace(found, variables={}) == dataclasses.replace(
            expected, variables={}
        )


def test_the_card_of_a_folder_in_a_bucket_is_uploaded_too(hub, bucket, tmp_path):
    write_folder(tmp_path / "mine", small_folder(image_size=20))
    for file in (tmp_path / "mine").iterdir():
        own = b"\nTrained on my photos.\n" if file.name == CARD_FILE else b""
        (bucket / file.name).write_bytes(file.read_bytes() + own)
    pushed = hub("push", bucket, "me/ants")
    assert pushed.returncode == 0, pushed.stderr
    assert "Trained on my photos." in Hub.repos["me/ants"][CARD_FILE].decode()


def test_a_card_that_is_not_utf_8_is_one_sentence(hub, tmp_path):
    write_folder(tmp_path / "mine", small_folder(image_size=20))
    (tmp_path / "mine" / CARD_FILE).write_bytes("München".encode("latin-1"))
    refused = hub("push", tmp_path / "mine", "me/ants")
    assert refused.returncode == 2
    assert f"mine/{CARD_FILE} is not UTF-8" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not Hub.repos


def test_a_file_of_weights_is_the_same_model_through_the_hub(hub, tmp_path):
    file = tmp_path / "net.caffemodel"
    file.write_bytes(caffemodel_bytes(random_layers()))
    assert hub("push", file, "me/net").returncode == 0
    assert hub("convert", "hf:me/net", tmp_path / "back").returncode == 0
    found, expected = read_folder(tmp_path / "back"), gnet_jax.load(file)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    assert dataclasses.replace(found, variables={}) == dataclasses.replace(expected, variables={})


def test_what_the_hub_refuses_is_one_sentence(hub, tmp_path):
    write_folder(tmp_path / "mine", small_folder(image_size=20))
    Hub.repos["me/empty"] = {CONFIG_FILE: b"{}"}
    for arguments, token, named in (
        (("convert", "hf:me/absent", tmp_path / "x"), "hf_test", "hf:me/absent"),
        (("convert", "hf:me/empty", tmp_path / "x"), "hf_test", "model.safetensors"),
        (("push", tmp_path / "mine", "me/ants"), "", "hf auth login"),
    ):
        refused = hub(*arguments, HF_TOKEN=token)
        assert refused.returncode == 2, refused.stderr
        assert named in refused.stderr
        assert refused.stderr.startswith("gnet: error: ")
        assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_private_model_is_not_uploaded_to_a_public_repository(hub, tmp_path):
    write_folder(tmp_path / "mine", small_folder(image_size=20))
    Hub.repos["me/public"] = {}
    refused = hub("push", tmp_path / "mine", "me/public", "--private")
    assert refused.returncode == 2
    assert refused.stderr.startswith("gnet: error: hf:me/public exists and is public")
    assert refused.stderr.count("\n") == 1
    assert Hub.repos == {"me/public": {}}
    for _ in range(2):
        pushed = hub("push", tmp_path / "mine", "me/secret", "--private")
        assert (pushed.returncode, pushed.stderr) == (0, "")
    assert CARD_FILE in Hub.repos["me/secret"]
    assert Hub.private == {"me/secret"}


@pytest.mark.parametrize("name", ["hf:ants", "hf:a/b/c", "hf:", "hf:me/"])
def test_a_name_without_an_owner_is_refused_before_anything_is_read(name, capsys):
    with pytest.raises(WeightsError, match=f"{name} .*OWNER/NAME"):
        gnet_jax.load(name)
    assert main(["push", "/no/model", name.removeprefix("hf:")]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err


def test_without_the_hubs_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"hf:me/ants .*\[hub\]"):
        gnet_jax.load("hf:me/ants")
