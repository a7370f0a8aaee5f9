"""What runs have finished: a file of JSON lines beside their pictures, from which a broken run goes on.

Each run begins with a line of its settings and of the numbers that its files take. A line follows for every
file as soon as it is on disk, with its hash. Lines are appended and never changed. What a kill may leave is a
torn last line, which the next line's writer cuts off, or a picture without its line, which the next run knows
by the settings in it.

Any number of processes may write one manifest, each under a lock that the system takes from it when it dies.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ldm.errors import InputError
from ldm.image_io import next_number

NAME = "manifest.jsonl"
LOCK = ".manifest.lock"

Settings = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """The files of a run, by paths relative to the manifest's folder."""

    folder: str  # of the pictures
    first: int  # number of the first picture
    pictures: int
    first_sheet: int
    sheets: int

    def picture(self, k: int) -> str:
        return f"{self.folder}/{self.first + k:05}.png"

    def sheet(self, i: int) -> str:
        return f"grid-{self.first_sheet + i:04}.png"

    def names(self) -> set[str]:
        return {
            *(self.picture(k) for k in range(self.pictures)),
            *(self.sheet(i) for i in range(self.sheets)),
        }


class Manifest:
    """The manifest of a folder; nothing is written before a run begins. Raises InputError on a sick disk."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.runs: list[tuple[Files, Settings]] = []
        self.known: dict[str, str] = {}  # the sha256 of each finished file
        self.end = 0  # of the lines that were read
        self.catch_up()

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def catch_up(self) -> list[str]:
        """Reads the lines that were added since, here or by others: the names of the files they tell of."""
        content = self._read(self.end)
        *lines, torn = content.split(b"\n")
        self.end += len(content) - len(torn)
        names = []
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a disk that lost its power may keep a hole in the place of a line
            match entry:
                case {
                    "run": {
                        "folder": "samples" | "comparisons" as pictures_folder,
                        "first": int(first),
                        "pictures": int(pictures),
                        "first_sheet": int(first_sheet),
                        "sheets": int(sheets),
                    },
                    "settings": dict(settings),
                }:
                    files = Files(pictures_folder, first, pictures, first_sheet, sheets)
                    self.runs.append((files, settings))
                case {"file": str(name), "sha256": str(digest)}:
                    self.known[name] = digest
                    names.append(name)
        return names

    def begin(self, folder: str, pictures: int, sheets: int, settings: Settings) -> Files:
        """A new run, whose numbers lie above those of all files that are there or promised to another run."""
        if not pictures and not sheets:
            return Files(folder, 0, 0, 0, 0)
        with self._locked():
            self.catch_up()
            promised = [files for files, _ in self.runs]
            ends = [files.first + files.pictures for files in promised if files.folder == folder]
            sheet_ends = [files.first_sheet + files.sheets for files in promised]
            files = Files(
                folder,
                max([next_number(self.folder / folder), *ends]),
                pictures,
                max([next_number(self.folder, "grid-"), *sheet_ends]),
                sheets,
            )
            self._append({"run": asdict(files), "settings": settings})
            self.catch_up()
        return files

    def find(self, settings: Settings) -> Files | None:
        """The last run of these settings; None where no run began.

        Raises InputError, with what differs, where the runs that are there are all others.
        """
        settings = json.loads(json.dumps(settings, default=str))
        for files, then in reversed(self.runs):
            if then == settings:
                return files
        if not self.runs:
            return None
        changes = [*differences(self.runs[-1][1], settings)]
        named = "; ".join(changes[:2]) + (" and more" if len(changes) > 2 else "")
        raise InputError(
            f"--resume: {self.path} is of a run with other settings: {named}. "
            "Give the same again to go on with it; without --resume or in another --outdir a new run begins."
        )

    def mark(self) -> str:
        """The sha256 of the lines that were read, as they stand there now. Another folder's is another."""
        return hashlib.sha256(self._read(0, self.end)).hexdigest()

    def holds(self, name: str) -> bool:
        """Whether the file is there as it was finished: neither removed nor changed since."""
        return name in self.known and self._digest(name) == self.known[name]

    def add(self, name: str, **details: Any) -> list[str]:
        """Writes down that a file is finished: its name, these details and its hash.

        Returns the names of all files finished since the manifest was read last, this one the last of them;
        it is left out where it was removed again already and has to be made once more.
        """
        digest = self._digest(name)
        with self._locked():
            names = self.catch_up()
            if digest is not None:
                self._append({"file": name, **details, "sha256": digest})
                names += self.catch_up()
        return names

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with FileLock(self.folder / LOCK):
                yield
        except OSError as fault:
            raise InputError(f"{self.path} cannot be written: {fault.strerror or fault}.") from None

    def _read(self, start: int, count: int = -1) -> bytes:
        """So many bytes, or all, from there on; none where there is no manifest."""
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(count)
        except FileNotFoundError:
            return b""
        except OSError as fault:
            raise InputError(f"{self.path} cannot be read: {fault.strerror or fault}.") from None

    def _append(self, entry: dict[str, Any]) -> None:
        """Puts a line behind those read, whole or not at all, and onto the disk; the lock has to be held."""
        content = json.dumps(entry, default=str).encode() + b"\n"
        with self.path.open("ab", buffering=0) as file:
            file.truncate(self.end)  # half a line is what a killed process left
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(self.end)
                raise

    def _digest(self, name: str) -> str | None:
        """The sha256 of a file, None where there is none."""
        try:
            return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise InputError(f"{self.folder / name} cannot be read: {fault.strerror or fault}.") from None

    def sweep(self, files: Files) -> None:
        """Removes the unfinished files that a kill left under temporary names (see `written_whole`)."""
        names = files.names()
        for folder in (self.folder, self.folder / files.folder):
            for part in folder.glob(".*.png.*"):
                final = part.with_name(part.stem.removeprefix("."))
                if final.relative_to(self.folder).as_posix() in names:
                    part.unlink(missing_ok=True)


def differences(then: Settings, now: Settings, prefix: str = "") -> Iterator[str]:
    """What changed between two runs' settings, as `steps is 4, was 2`; nested names are joined by dots."""
    for name in dict.fromkeys([*then, *now]):
        before, after = then.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name} is {json.dumps(after):.80}, was {json.dumps(before):.80}"
