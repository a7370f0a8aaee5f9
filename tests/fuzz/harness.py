"""What a fuzzed run may do: end in time with 0 or 2, say why in few lines, and write into its folder alone.

FUZZ_CASES says about how many cases all of these tests have together. 120 by default, always the same; a
larger number takes new ones each time.
"""

import contextlib
import functools
import importlib.util
import io
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import ldm.txt2img.run
from ldm.folders import ROOT
from ldm.txt2img.prompted import load_prompted

CASES = int(os.environ.get("FUZZ_CASES", "120"))
LONGEST = 30  # seconds of one case
MEMORY = 8 << 30  # bytes that may come on top of what is taken already
LINES = 8  # of what is said on an error, argparse's usage among it


def cases(share: float) -> settings:
    """The settings of a test that has this share of all cases."""
    return settings(
        max_examples=max(5, round(share * CASES)),
        derandomize=CASES < 1000,
        suppress_health_check=list(HealthCheck),
    )


# Numbers at the edges of what is allowed, none of which asks for honest work of hours.
INTEGERS = st.sampled_from([-(2**70), -1, 0, 1, 2, 3, 7, 31, 33, 64, 1001, 10**9 + 1, 2**31, 2**63, 2**70])
COUNTS = INTEGERS.filter(lambda number: not 3 < number < 2**31)  # of what takes its time
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 1e-300, 1e300, 1.0, 0.5])
TEXTS = st.text(max_size=40) | st.sampled_from(
    [
        "",
        " ",
        "\0",
        "\ud800",
        "../..",
        "/",
        "~",
        "nan",
        "1e5",
        "${model}",
        "${oc.env:HOME}",
        "???",
        "null",
        "a" * 5000,
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    err: str
    pictures: list[Path]


class Hang(BaseException):
    """A case took longer than LONGEST."""


class Watch:
    """Hears what Python does to files, and keeps what it does outside a folder."""

    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
    CHANGES = (
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
    )

    def __init__(self) -> None:
        self.folder: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & self.WRITING
        else:
            path, writes = (arguments or ("",))[0], event in self.CHANGES or event == "subprocess.Popen"
        if writes and not isinstance(path, int):
            place = os.path.realpath(os.fsdecode(path))
            if not f"{place}/".startswith(f"{self.folder}/") and place != "/dev/null":
                self.outside.append(f"{event} {place}")

    @contextlib.contextmanager
    def on(self, folder: Path) -> Iterator[None]:
        self.folder, self.outside = os.path.realpath(folder), []
        try:
            yield
        finally:
            self.folder = None


WATCH = Watch()


@functools.cache
def script(name: str = "txt2img") -> Any:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KEPT: dict[str, Any] = {}


def load_once(config: Any, ckpt: Any, *rest: Any, **options: Any) -> Any:
    """As `load_prompted`, and each model of a config and a checkpoint is read once."""
    key = repr((config, str(ckpt), rest, sorted(options.items())))
    if key not in KEPT:
        if len(KEPT) > 20:
            KEPT.clear()
        KEPT[key] = load_prompted(config, ckpt, *rest, **options)
    return KEPT[key]


def run(folder: Path, *argv: str, name: str = "txt2img", imports: bool = False) -> Ended:
    """Runs a script in a folder of its own, and sees to it that it ends as it should.

    With `imports` it may write elsewhere: torch 2.6 makes a temporary file as it is imported.
    """
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    said = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)

    def give_up(*_: object) -> None:
        raise Hang(f"after {LONGEST} seconds")

    before, limits = signal.signal(signal.SIGALRM, give_up), resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        with (
            patch.object(ldm.txt2img.run, "load_prompted", load_once),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(said),
            torch.no_grad(),
            WATCH.on(out),
        ):
            code = script(name).main(["--outdir", str(out), "--device", "cpu", *argv])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)

    err = said.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert code in (0, 2), (code, err)
    assert imports or WATCH.outside == []
    assert "Traceback" not in err
    if code:
        assert err.strip() and err.count("\n") <= LINES + err.count("\nusage"), err
        assert "error: " in err
    return Ended(code, err, sorted(out.glob("*/*.png")))
