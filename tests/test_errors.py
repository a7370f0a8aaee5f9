"""What becomes of a script's words and faults."""

import io
import sys

import pytest

from ldm.errors import InputError, exit_code

MINUS = "\u2212"


def spoken(monkeypatch: pytest.MonkeyPatch, errors: str) -> tuple[int, bytes, bytes]:
    """What exit_code says and writes to stdout and stderr, where these are in cp1252."""
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors=errors, newline="\n")
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


def test_a_stream_that_was_told_what_to_do_with_such_letters_keeps_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert spoken(monkeypatch, "replace") == (2, b"5 ? 3 = 2\n", b"error: ?3 is too few.\n")


def test_a_script_without_streams_does_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert exit_code(lambda: print(MINUS), "stopped") == 0
