"""Work in a copy of this process, and the files that it leaves."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import RLock

from tqdm import tqdm

Tree = dict[str, bytes]


def tree(folder: Path) -> Tree:
    """Every file with its content; the manifest's lines sorted, as their order is that of the finishing."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files.pop(".manifest.lock", None)
    if "manifest.jsonl" in files:
        files["manifest.jsonl"] = b"\n".join(sorted(files["manifest.jsonl"].split(b"\n")))
    return files


def fork(work: Callable[[], int]) -> int:
    """Starts a copy of this process that does some work and ends with its code; returns its id.

    What other threads have locked stays locked in the copy. So the files whose tests call it stand ahead of
    test_training.py, whose tests leave threads behind, and not in the folder of the other tests of txt2img.
    A bar's lock is one for all copies, and would stay locked for every later one when its holder is killed.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        tqdm.set_lock(RLock())
        code = work()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """The code that a process ends with; minus the signal where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
