"""Faults that a user can mend, warnings, and what a script makes of them."""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Timer, get_ident
from types import FrameType

_asked: list[int] = []  # the number of the signal that asked this process to stop


class InputError(ValueError):
    """Bad input: the message names the value and the remedy. Scripts print it and exit with code 2."""


class NoNumbers(InputError):
    """What a model or a measure came to is NaN or infinite, as with factors that are too strong."""


@contextmanager
def refusing(before: str = "") -> Iterator[None]:
    """Raises InputError for a ValueError of what is done within it, in its words, with `before` ahead."""
    try:
        yield
    except ValueError as fault:
        raise InputError(f"{before}{fault}") from None


def warn(line: str) -> None:
    """To the terminal, beside the progress bars."""
    from tqdm import tqdm  # not needed to answer --help

    tqdm.write(f"warning: {line}", file=sys.stderr)


@contextmanager
def needing(packages: Sequence[str], message: str) -> Iterator[None]:
    """Raises InputError with this message where what is imported within it lacks one of these packages."""
    try:
        yield
    except ModuleNotFoundError as fault:
        if str(fault.name).partition(".")[0] not in packages:
            raise
        raise InputError(message) from None


def stop_when_asked() -> None:
    """Lets SIGTERM, which schedulers and service managers send, do what Ctrl-C does, and either but once.

    The number of the signal is the KeyboardInterrupt's argument. Where Python loses that, as in an object's
    `__del__`, it is raised once more a moment later, and where a module in C might, once that is loaded; see
    also `keeping_the_stop`.
    """
    heard = [it for it in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(it) is not signal.SIG_IGN]
    tell_of_lost = sys.unraisablehook
    # Sent to this thread a signal ends its waiting too, which Windows cannot do.
    send = (
        partial(signal.pthread_kill, get_ident()) if hasattr(signal, "pthread_kill") else signal.raise_signal
    )

    def stop(number: int, frame: FrameType | None) -> None:
        if _loads_an_extension(frame):
            Timer(0.1, send, [number]).start()
            return
        for other in heard:
            signal.signal(other, lambda *_: None)
        _asked[:] = [number]
        raise KeyboardInterrupt(number)

    def listen() -> None:
        for number in heard:
            signal.signal(number, stop)

    def ask_again(lost: "sys.UnraisableHookArgs") -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt) and lost.exc_value.args:
            listen()
            Timer(0.1, send, lost.exc_value.args).start()
        else:
            tell_of_lost(lost)

    sys.unraisablehook = ask_again
    listen()


def _loads_an_extension(frame: FrameType | None) -> bool:
    """Whether a module in C is being made, whose code may take any exception for a missing package.

    Torch's does while it imports numpy: the stop would be forgotten, and no other heard.
    """
    while frame is not None and frame.f_code.co_name != "create_module":
        frame = frame.f_back
    return frame is not None


@contextmanager
def keeping_the_stop() -> Iterator[None]:
    """Raises the KeyboardInterrupt of `stop_when_asked` again where code within made another fault of it.

    OmegaConf does, whose cleaning up faults where it is stopped half-way.
    """
    _asked.clear()
    try:
        yield
    except Exception:
        if not _asked:
            raise
        raise KeyboardInterrupt(*_asked) from None


def let_streams_take_all() -> None:
    """Lets stdout and stderr take whatever is printed.

    What their encoding has no letter for is escaped, as \\u2212 for a minus sign. What is said to a stream
    that is not there, as under Windows' pythonw or with 2>&-, goes nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):
            # Redirected on Windows it is in cp1252, and in the C locale it may be in ASCII.
            lacking = stream.errors == "surrogateescape" and stream.encoding.lower() != "utf-8"
            if lacking or stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")


def exit_code(work: Callable[[], object], stopped: str) -> int:
    """Does a script's work and returns what the script exits with; `stopped` is said after Ctrl-C.

    0, or 2 on bad input, or 128 and the number of the signal that stopped it, which is SIGPIPE's where
    nobody reads on what it prints.
    """
    let_streams_take_all()
    try:
        with keeping_the_stop():
            work()
        print(end="", flush=True)
    except InputError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:
            # What is still to be written goes nowhere, or Python would speak of it as it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + 13
        raise
    except OSError as fault:
        if fault.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {str(fault.filename)[:40]}... is too long a name of a file.", file=sys.stderr)
        return 2
    except KeyboardInterrupt as asked:
        print(f"\n{stopped}", file=sys.stderr)
        return 128 + (asked.args[0] if asked.args else signal.SIGINT)
    return 0
