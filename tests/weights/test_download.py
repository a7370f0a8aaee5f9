"""The hub's client against a local server that speaks as much of the hub's protocol as a download needs."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ldm.errors import InputError
from ldm.weights.download import KNOWN_FILES, download
from tests.waiting import wait_until

# The hub's client writes 10 MB at a time, and resumes at a multiple of that.
CHUNK = 10 << 20
CONTENT = bytes(range(256)) * (24 << 12)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "weights.ckpt"

# HF_ENDPOINT is read once, when the hub's client is imported; so each download is a process of its own.
FETCH = """
import sys
from pathlib import Path
from ldm.weights.download import KNOWN_FILES, KnownFile, download
from ldm.errors import InputError
name, sha256, into = sys.argv[1:]
KNOWN_FILES[name] = KnownFile(sha256, None, "someone/somewhere", "some.yaml")
try:
    print(download(name, Path(into)))
except InputError as error:
    sys.exit(f"refused: {error}")
"""


class Hub(ThreadingHTTPServer):
    """Serves one file. Its first `breaks` answers end halfway; while it `stalls`, they hang there."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = CONTENT
        self.breaks = 0
        self.stalls = threading.Event()
        self.knows_ranges = True
        self.etag = "0" * 40
        self.served: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.begin(200, len(self.server.content)) if self.path.endswith(f"/{NAME}") else self.begin(404, 0)

    def do_GET(self) -> None:
        if not self.path.endswith(f"/{NAME}"):
            return self.begin(404, 0)
        content, wanted = self.server.content, self.headers.get("Range")
        self.server.served.append((self.path, wanted))
        wanted = wanted if self.server.knows_ranges else None
        first = start(wanted) if wanted else 0
        body = content[first:]
        self.begin(206 if wanted else 200, len(body), f"bytes {first}-{len(content) - 1}/{len(content)}")
        if self.server.breaks or self.server.stalls.is_set():
            body = body[: len(body) // 2]
            self.close_connection = True
        self.server.breaks = max(0, self.server.breaks - 1)
        self.wfile.write(body)
        while self.server.stalls.is_set():
            time.sleep(0.01)

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


def start(wanted: str) -> int:
    """The first byte that a Range header asks for."""
    return int(wanted.removeprefix("bytes=").removesuffix("-"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def begin(url: str, into: Path, name: str = NAME, sha256: str = SHA256) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(into / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, name, sha256, str(into)],
        env=environment, cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def fetch(url: str, into: Path, name: str = NAME, sha256: str = SHA256) -> subprocess.CompletedProcess[str]:
    process = begin(url, into, name, sha256)
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def fetch_and_kill(hub: Hub, into: Path) -> Path:
    """Kills a download in the middle; returns the part that is left."""
    hub.stalls.set()
    process = begin(hub.url, into)
    wait_until(lambda: any(it.stat().st_size >= CHUNK for it in into.glob("*.part")), 60, process)
    process.kill()
    process.communicate()
    hub.stalls.clear()
    (part,) = into.glob("*.part")
    return part


def test_a_file_is_fetched_and_its_hash_verified(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert [path for path, _ in hub.served] == [f"/someone/somewhere/resolve/main/{NAME}"]
    assert [it.name for it in tmp_path.iterdir() if it.name != "home"] == [NAME]


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 1
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / NAME).read_bytes() == CONTENT
    (_, first), (_, second) = hub.served
    assert first is None
    assert second is not None and start(second) == CHUNK


def test_of_two_at_once_one_fetches_and_both_have_the_file(hub: Hub, tmp_path: Path) -> None:
    hub.stalls.set()
    processes = [begin(hub.url, tmp_path)]
    wait_until(lambda: hub.served, 60, processes[0])
    processes.append(begin(hub.url, tmp_path))
    with pytest.raises(subprocess.TimeoutExpired):
        processes[1].wait(timeout=3)  # by when it has long begun
    hub.stalls.clear()
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, output.strip()) == (0, str(tmp_path / NAME)), errors
    assert [wanted for _, wanted in hub.served] == [None, f"bytes={CHUNK}-"]  # one, after its stall
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert [it.name for it in tmp_path.iterdir() if it.name != "home"] == [NAME]


def test_a_file_that_is_there_is_taken_where_its_hash_is_right_and_fetched_where_it_is_not(
    hub: Hub, tmp_path: Path
) -> None:
    for there, served in ((CONTENT[:-1], 1), (CONTENT, 0)):
        (tmp_path / NAME).write_bytes(there)
        hub.served.clear()
        assert fetch(hub.url, tmp_path).returncode == 0
        assert len(hub.served) == served and (tmp_path / NAME).read_bytes() == CONTENT


def test_a_file_that_cannot_take_its_place_is_said_in_one_line_and_kept(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 1
    line, hint = done.stderr.strip().splitlines()
    assert line.startswith(f"refused: {NAME} could not be downloaded from someone/somewhere on the hub: ")
    assert "is kept" in hint
    (part,) = tmp_path.glob("*.part")
    assert part.read_bytes() == CONTENT


def test_a_killed_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    part = fetch_and_kill(hub, tmp_path)
    assert part.name.startswith(f"{NAME}.")
    assert part.read_bytes() == CONTENT[:CHUNK]
    assert not (tmp_path / NAME).exists()

    done = fetch(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [wanted for _, wanted in hub.served] == [None, f"bytes={CHUNK}-"]
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert not part.exists()


def test_a_download_killed_before_its_hash_was_taken_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    fetch_and_kill(hub, tmp_path).write_bytes(CONTENT)
    assert fetch(hub.url, tmp_path).returncode == 0
    assert len(hub.served) == 1
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["etag", "size"])
def test_a_part_of_another_version_is_not_gone_on_with(change: str, hub: Hub, tmp_path: Path) -> None:
    hub.content = CONTENT[::-1][1:] if change == "size" else CONTENT[::-1]
    stale = fetch_and_kill(hub, tmp_path)
    hub.content = CONTENT
    if change == "etag":
        hub.etag = "1" * 40
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [wanted for _, wanted in hub.served] == [None, None]
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert not stale.exists()


def test_a_server_that_knows_no_ranges_gives_the_file_from_its_start(hub: Hub, tmp_path: Path) -> None:
    fetch_and_kill(hub, tmp_path)
    hub.knows_ranges = False
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_download_that_fails_says_that_what_has_come_is_kept(hub: Hub, tmp_path: Path) -> None:
    fetch_and_kill(hub, tmp_path)
    hub.shutdown()
    hub.server_close()
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 1
    assert "goes on from there" in done.stderr


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
    contract = json.loads((Path(__file__).parents[1] / "data" / "sd-configs.json").read_text())["files"]
    del contract["note"]
    assert KNOWN_FILES.keys() == contract.keys()
    for name, entry in contract.items():
        known = KNOWN_FILES[name]
        assert (known.sha256, known.bytes) == (entry.get("sha256"), entry.get("bytes"))
        assert known.repo == entry["repo"].partition(" ")[0]
        assert known.config == entry["config"]
