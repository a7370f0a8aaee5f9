"""The hub's client against a local server that speaks as much of the hub's protocol as a download needs."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ldm.download import KNOWN_FILES, download
from ldm.errors import InputError

# The hub's client writes 10 MB at a time, and resumes at a multiple of that.
CONTENT = bytes(range(256)) * (24 << 12)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "weights.ckpt"

# HF_ENDPOINT is read once, when the hub's client is imported; so each download is a process of its own.
FETCH = """
import sys
from pathlib import Path
from ldm.download import KNOWN_FILES, KnownFile, download
from ldm.errors import InputError
name, sha256, into = sys.argv[1:]
KNOWN_FILES[name] = KnownFile(sha256, None, "someone/somewhere", "some.yaml")
try:
    print(download(name, Path(into)))
except InputError as error:
    sys.exit(f"refused: {error}")
"""


class Hub(ThreadingHTTPServer):
    """Serves CONTENT as the one file of a repository, and breaks off the first `breaks` answers halfway."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.breaks = 0
        self.etag = "0" * 40
        self.served: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.begin(200, len(CONTENT)) if self.path.endswith(f"/{NAME}") else self.begin(404, 0)

    def do_GET(self) -> None:
        if not self.path.endswith(f"/{NAME}"):
            return self.begin(404, 0)
        wanted = self.headers.get("Range")
        self.server.served.append((self.path, wanted))
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        body = CONTENT[first:]
        self.begin(206 if wanted else 200, len(body), f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def begin(self, status: int, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", f'"{self.server.etag}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        if status == 206 and content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """A test's output is no place for a server's log."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(url: str, into: Path, name: str = NAME, sha256: str = SHA256) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(into / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", FETCH, name, sha256, str(into)],
        env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_file_is_fetched_and_its_hash_verified(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert [path for path, _ in hub.served] == [f"/someone/somewhere/resolve/main/{NAME}"]
    assert [it.name for it in tmp_path.iterdir() if "download" in it.name] == []


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 1
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / NAME).read_bytes() == CONTENT
    (_, first), (_, second) = hub.served
    assert first is None
    assert second is not None and int(second.removeprefix("bytes=").removesuffix("-")) >= 10_000_000


def test_a_file_with_another_hash_is_set_aside_and_refused(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub.url, tmp_path, sha256="0" * 64)
    assert done.returncode == 1
    assert SHA256 in done.stderr and "0" * 64 in done.stderr and f"{NAME}.wrong-hash" in done.stderr
    assert not (tmp_path / NAME).exists()
    assert (tmp_path / f"{NAME}.wrong-hash").read_bytes() == CONTENT


def test_a_hash_told_beforehand_is_refused_without_a_download(hub: Hub, tmp_path: Path) -> None:
    hub.etag = "f" * 64
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 1
    assert "f" * 64 in done.stderr
    assert hub.served == []


def test_a_file_that_the_hub_has_not_is_said_in_one_line(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub.url, tmp_path, name="other.ckpt")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert (
        line.startswith("refused: other.ckpt could not be downloaded from someone/somewhere")
        and "404" in line
    )


def test_no_network_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = fetch(f"http://127.0.0.1:{free.getsockname()[1]}", tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"refused: {NAME} could not be downloaded from someone/somewhere on the hub: ")
    assert [it for it in tmp_path.iterdir() if it.name != "home"] == []


def test_a_file_without_a_known_hash_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no hash of it is known"):
        download("v2-1_512-ema-pruned.safetensors", tmp_path)


def test_only_known_files_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"../evil.*sd-v1-4.ckpt"):
        download("../evil", tmp_path)


def test_the_table_is_that_of_the_contract() -> None:
    contract = json.loads((Path(__file__).parent / "data" / "sd-configs.json").read_text())["files"]
    del contract["note"]
    assert KNOWN_FILES.keys() == contract.keys()
    for name, entry in contract.items():
        known = KNOWN_FILES[name]
        assert (known.sha256, known.bytes) == (entry.get("sha256"), entry.get("bytes"))
        assert known.repo == entry["repo"].partition(" ")[0]
        assert known.config == entry["config"]
