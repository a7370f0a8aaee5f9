"""What becomes of a script's words and faults."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tqdm import tqdm

from ldm.errors import InputError, exit_code, stop_when_asked, warn

MINUS = "\u2212"


def spoken(
    monkeypatch: pytest.MonkeyPatch, errors: str, encoding: str = "cp1252"
) -> tuple[int, bytes, bytes]:
    """What exit_code says and writes to stdout and stderr, where these are in an encoding without U+2212."""
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, newline="\n")
        monkeypatch.setattr(sys, name, streams[name])

    def work() -> None:
        print(f"5 {MINUS} 3 = 2")
        raise InputError(f"{MINUS}3 is too few.")

    code = exit_code(work, "stopped")
    for stream in streams.values():
        stream.flush()
    return code, *(stream.buffer.getvalue() for stream in streams.values())


def test_a_letter_that_a_stream_lacks_ends_no_script(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spoken(monkeypatch, "strict") == (2, b"5 \\u2212 3 = 2\n", b"error: \\u22123 is too few.\n")


def test_neither_does_one_that_the_c_locale_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (2, b"5 \\u2212 3 = 2\n", b"error: \\u22123 is too few.\n")
    assert spoken(monkeypatch, "surrogateescape", "ascii") == said


def test_a_name_of_other_bytes_is_printed_as_it_is_in_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape", newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    assert exit_code(lambda: print("\udcff.png"), "stopped") == 0
    assert stream.buffer.getvalue() == b"\xff.png\n"


def test_a_stream_that_was_told_what_to_do_with_such_letters_keeps_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert spoken(monkeypatch, "replace") == (2, b"5 ? 3 = 2\n", b"error: ?3 is too few.\n")


def test_a_script_without_streams_does_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    def work() -> None:
        print(MINUS)
        warn("5 is much.")
        for _ in tqdm([1], disable=None):
            pass

    assert exit_code(work, "stopped") == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_a_script_quietly(unbuffered: str) -> None:
    script = "import sys; from ldm.errors import exit_code; sys.exit(exit_code(lambda: print(5), 'stopped'))"
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=theirs,
        stderr=subprocess.PIPE,
        timeout=50,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (128 + 13, b"")


def test_a_pipe_that_breaks_elsewhere_is_no_reader_that_has_gone() -> None:
    def work() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        exit_code(work, "stopped")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_an_object_is_deleted_stops_a_script(number: signal.Signals) -> None:
    script = f"""
import signal, sys, time
from ldm.errors import exit_code, stop_when_asked

class Deleted:
    def __del__(self):
        signal.raise_signal({int(number)})

def work():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where it is ignored
    stop_when_asked()
    Deleted()
    time.sleep(60)

sys.exit(exit_code(work, "stopped"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "\nstopped\n")


def test_a_signal_that_comes_while_torch_imports_numpy_stops_a_script() -> None:
    # Torch's module in C goes on without numpy where the import of it fails, whatever the reason.
    script = """
import signal, sys, time
from ldm.errors import exit_code, stop_when_asked

class Finder:
    def find_spec(self, name, *_):
        if name == "numpy":
            frame = sys._getframe()
            while frame.f_code.co_name != "create_module":
                frame = frame.f_back
            signal.raise_signal(signal.SIGINT)

def work():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where it is ignored
    stop_when_asked()
    sys.meta_path.insert(0, Finder())
    import torch
    time.sleep(5)

sys.exit(exit_code(work, "stopped"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "\nstopped\n")


@pytest.fixture
def listening() -> Iterator[None]:
    """Ends a test with the handlers that it began with, also where the tests run with interrupts ignored."""
    hook, before = sys.unraisablehook, {it: signal.getsignal(it) for it in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop_when_asked()
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(
    "made_of_it", [InputError("x.yaml is not a config."), AttributeError("None has no x")]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_stays_one_whatever_code_makes_of_it(
    number: signal.Signals, made_of_it: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            raise made_of_it

    assert exit_code(work, "stopped") == 128 + number
    assert capsys.readouterr().err == "\nstopped\n"


@pytest.mark.usefixtures("listening")
def test_a_fault_after_an_earlier_stop_is_told_as_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise InputError("5 is too much.")

    exit_code(lambda: signal.raise_signal(signal.SIGINT), "stopped")
    assert exit_code(fail, "stopped") == 2
    assert capsys.readouterr().err == "\nstopped\nerror: 5 is too much.\n"
