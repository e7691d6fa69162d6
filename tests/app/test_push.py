"""An export is put on the Hub: huggingface_hub's own client, against a Hub in this process."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants

from potluck.app.push import push, token_for
from potluck.errors import EnvironmentProblem, UsageError

FILES = {
    "README.md": b"---\ntags: []\n---\n# a model\n",
    "model.safetensors": b"weights",
    "config.json": b"{}",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload of small files asks for."""

    refuses = 0
    asked: list[tuple[str, str]]
    got: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(iter(self._chunk, b""))
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        if self.refuses:
            self._answer({"error": "this token may not write"}, self.refuses)
        elif self.path == "/api/repos/create":
            self._answer({"url": f"{constants.ENDPOINT}/me/model", "id": "me/model"})
        elif self.path == "/api/models/me/model/preupload/main":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif self.path == "/api/models/me/model/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.got[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{constants.ENDPOINT}/me/model/commit/1"
            self._answer({"commitUrl": url, "commitOid": "1", "hookOutput": "", "success": True})
        else:
            self._answer({})

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        piece = self.rfile.read(size)
        self.rfile.readline()
        return piece

    def _answer(self, said: Any, status: int = 200) -> None:
        raw = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class Here(Hub):
        asked, got = [], {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Here)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield Here
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, raw in FILES.items():
        (folder / name).write_bytes(raw)
    return folder


def test_all_files_come_to_the_repository(hub: type[Hub], model: Path) -> None:
    assert push(model, "me/model") == f"{constants.ENDPOINT}/me/model"
    assert hub.got == FILES
    assert {path for path, _ in hub.asked} >= {"/api/repos/create", "/api/models/me/model/commit/main"}
    assert all(who == "Bearer hf_secret" for path, who in hub.asked if "validate" not in path)


def test_a_refusal_is_told_and_says_where_the_model_is(hub: type[Hub], model: Path) -> None:
    hub.refuses = 403
    with pytest.raises(EnvironmentProblem, match=r"the model is in .*, but not at me/model: .*403"):
        push(model, "me/model")


def test_a_hub_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(EnvironmentProblem, match="but not at me/model"):
        push(model, "me/model")


def test_without_a_token_it_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="hf auth login"):
        token_for("me/model")


def test_what_is_no_name_of_a_repository_is_told() -> None:
    with pytest.raises(UsageError, match="no repository's name"):
        token_for("not a name")
