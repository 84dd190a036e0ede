"""`chuk model upload` against a stand-in of the hub's API: what it is asked, in which order, and
what it is sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunChuk


class Hub(ThreadingHTTPServer):
    """Repositories by id, whether each is private, and the files that were committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead the hub's client here."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test"}


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def _answer(self, value: Any, code: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").split("?")[0].removesuffix("/revision/main")
        if name not in self.server.private:
            self._answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            return
        private = self.server.private[name]
        self._answer({"id": name, "modelId": name, "private": private, "sha": "0" * 40})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.private[name] = bool(
                asked.get("private") or asked.get("visibility") == "private"
            )
            self._answer({"url": f"{self.server.url}/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
                elif line["key"] == "header":
                    self.server.messages.append(line["value"]["summary"])
            url = f"{self.server.url}/owner/small/commit/1"
            self._answer({"commitUrl": url, "commitOid": "1"})
        else:
            self._answer({})


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def pruned(tiny_model_dir: Path, tmp_path: Path, run_chuk: RunChuk) -> Path:
    made = run_chuk("model", "prune", tiny_model_dir, "-o", "small", "--drop", "0")
    assert made.returncode == 0, made.stderr
    return tmp_path / "small"


def test_a_model_is_sent_with_a_card_and_without_paths_of_this_machine(
    pruned: Path, hub: Hub, tiny_model_dir: Path, run_chuk: RunChuk
) -> None:
    asked = ("model", "upload", pruned, "owner/small")
    planned = run_chuk(*asked, "--dry-run", "--json", env=hub.environment)
    assert planned.returncode == 0, planned.stderr
    assert not hub.private
    said = json.loads(planned.stdout)
    sent = run_chuk(*asked, "--message", "first", env=hub.environment)
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.strip() == f"{hub.url}/owner/small/commit/1"
    assert hub.private == {"owner/small": True}
    assert sorted(hub.files) == sorted(said["files"])
    assert hub.messages == ["first"]
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert hub.files[name] == (pruned / name).read_bytes()
    card = hub.files["README.md"].decode()
    assert card == said["card"]
    assert card.startswith("---\nlibrary_name: mlx\n")
    assert "`chuk model prune`" in card
    assert f"- `{tiny_model_dir.name}`" in card
    assert '"drop": [' in card
    assert str(tiny_model_dir) not in card
    assert {"provenance.json", "checksums.json"}.isdisjoint(hub.files)


def test_a_public_repository_gets_nothing_private_and_the_other_way(
    pruned: Path, hub: Hub, run_chuk: RunChuk
) -> None:
    asked = ("model", "upload", pruned)
    assert run_chuk(*asked, "owner/open", "--public", env=hub.environment).returncode == 0
    assert hub.private == {"owner/open": False}
    hub.private["owner/closed"] = True
    hub.files.clear()
    for more, why in (
        (("owner/open",), "and public"),
        (("owner/closed", "--public"), "and private"),
    ):
        refused = run_chuk(*asked, *more, env=hub.environment)
        assert (refused.returncode, why in refused.stderr) == (1, True), refused.stderr
    assert not hub.files


def test_an_own_card_is_kept_and_damage_is_not_sent(
    pruned: Path, hub: Hub, run_chuk: RunChuk
) -> None:
    (pruned / "README.md").write_text("mine")
    assert run_chuk("model", "upload", pruned, "owner/small", env=hub.environment).returncode == 0
    assert hub.files["README.md"] == b"mine"
    hub.files.clear()
    weights = bytearray((pruned / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (pruned / "model.safetensors").write_bytes(weights)
    refused = run_chuk("model", "upload", pruned, "owner/small", env=hub.environment)
    assert (refused.returncode, "checksum" in refused.stderr) == (1, True), refused.stderr
    assert run_chuk("model", "upload", pruned, "small").returncode == 2
    assert not hub.files
