"""That somebody is at a run: held by each of its processes, and taken from it by the system when it dies.

Two commands at the same run would sweep away each other's unfinished files and draw everything twice.
"""

from pathlib import Path

from filelock import FileLock, Timeout

from ldm.errors import InputError
from ldm.txt2img.manifest import Files


class Claim:
    """A process's hold on a run's files, from `take` to `give_back`."""

    def __init__(self, outdir: Path, files: Files, rank: int):
        self.outdir = outdir
        self.run = f".{files.folder}-{files.first:05}-{files.first_sheet:04}"
        self.own = FileLock(outdir / f"{self.run}.{rank}.lock", timeout=0)

    def take(self) -> None:
        """Raises InputError where another process of the same number has it, or the disk is sick."""
        self._acquire(self.own)

    def take_alone(self) -> None:
        """As `take`; raises InputError also where a process of any number has it."""
        self.take()
        for path in self.outdir.glob(f"{self.run}.*.lock"):
            if path != Path(self.own.lock_file):
                other = FileLock(path, timeout=0)
                self._acquire(other)
                other.release()
                path.unlink(missing_ok=True)

    def give_back(self) -> None:
        self.own.release()
        Path(self.own.lock_file).unlink(missing_ok=True)

    def _acquire(self, lock: FileLock) -> None:
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"--resume: another command is at this run in {self.outdir}: let it end, or stop it first."
            ) from None
        except OSError as fault:
            raise InputError(f"{lock.lock_file} cannot be written: {fault.strerror or fault}.") from None
