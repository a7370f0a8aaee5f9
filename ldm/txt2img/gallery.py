"""The files that come of a run of txt2img: single pictures, sheets of them, and the manifest's lines."""

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ldm.config.annotations import fits
from ldm.errors import InputError
from ldm.image_io import Picture, grid, read_picture, read_record, save_png, writable_folder
from ldm.txt2img.claim import Claim
from ldm.txt2img.jobs import Job
from ldm.txt2img.manifest import Files, Manifest
from ldm.txt2img.recipe import Recipe

LAYOUT: Mapping[str, type] = {"n_samples": int, "n_iter": int, "n_rows": int, "fixed_code": bool}


class Sheets(Protocol):
    """How pictures are shown together."""

    size: int  # pictures on one sheet; the rest go on to the next
    least: int  # pictures that are worth a sheet

    def save(self, path: Path, i: int, pictures: Sequence[Picture]) -> None:
        """Writes sheet i of its pictures, in order."""
        ...


class PlainSheets:
    """Pictures in rows of `n_rows`, or of `n_samples`, or in about as many rows as columns.

    Each sheet of a run of --prompt carries the settings of the run's first picture, and its layout.
    """

    size, least = 64, 2

    def __init__(self, arguments: Namespace, first: Recipe):
        self.columns = arguments.n_rows or (arguments.n_samples if arguments.n_samples > 1 else 0)
        self.is_of_one_prompt = arguments.from_file is None
        self.first, self.layout = first, {name: getattr(arguments, name) for name in LAYOUT}

    def save(self, path: Path, i: int, pictures: Sequence[Picture]) -> None:
        sheet = grid(pictures, self.columns or math.ceil(math.sqrt(len(pictures))))
        if self.is_of_one_prompt:
            save_png(path, sheet, self.first.parameters(), asdict(self.first) | self.layout)
        else:
            save_png(path, sheet)


def read_layout(path: Path) -> dict[str, int]:
    """The layout of the run that a sheet is of, by txt2img's arguments; empty for other pictures."""
    record = read_record(path)
    return {name: record[name] for name, kind in LAYOUT.items() if fits(record.get(name), kind)}


@dataclass(frozen=True)
class Opened:
    """How a run stands when it begins."""

    manifest: Manifest
    files: Files
    missing: set[str]
    resumed: bool
    mark: str  # of the manifest's lines, by which others know that they see the same


class Gallery:
    """The files of a run, and which of them are missing.

    Several processes may fill one gallery: each has this object as the first of them opened it, and learns
    from the manifest what the others have finished since.
    """

    def __init__(
        self, arguments: Namespace, jobs: list[Job], recipe: Callable[[Job], Recipe], sheets: Sheets
    ):
        self.arguments, self.jobs, self.recipe, self.sheets = arguments, jobs, recipe, sheets
        self.folder = "comparisons" if arguments.compare else "samples"
        self.outdir = writable_folder(arguments.outdir)
        if not arguments.skip_save:
            writable_folder(self.outdir / self.folder)

        # Which pictures stand on each sheet; a single picture needs none where it is saved anyway.
        total, size = len(jobs), sheets.size
        shares = [range(start, min(start + size, total)) for start in range(0, total, size)]
        least = 1 if arguments.skip_save else sheets.least
        self.shares = {i: share for i, share in enumerate(shares) if len(share) >= least}
        if arguments.skip_grid:
            self.shares = {}
        self.unsaved: list[Picture] = []  # pictures that go to a sheet only
        self.in_files = self.in_hand = 0  # how many pictures are made
        self.claim: Claim | None = None
        self.closes = False  # whether the file written last here was the last of all

    def open(self, settings: dict[str, Any]) -> Opened:
        """Begins a run of these settings, or goes on with a broken one, which nobody else may be at."""
        manifest = Manifest(self.outdir)
        broken = manifest.find(settings) if self.arguments.resume else None
        pictures = range(0 if self.arguments.skip_save else len(self.jobs))
        files = broken or manifest.begin(self.folder, len(pictures), len(self.shares), settings)
        self._claim(files, rank=0)
        if broken:
            manifest.sweep(broken)
        missing = {
            *(files.picture(k) for k in pictures if not (broken and self._is_there(k, manifest, files))),
            *(files.sheet(i) for i in self.shares if not (broken and manifest.holds(files.sheet(i)))),
        }
        return Opened(manifest, files, missing, broken is not None, manifest.mark())

    def _claim(self, files: Files, rank: int) -> None:
        if files.names():
            claim = Claim(self.outdir, files, rank)
            claim.take_alone() if rank == 0 else claim.take()
            self.claim = claim

    def leave(self) -> None:
        """Lets others go on with the run."""
        if self.claim is not None:
            self.claim.give_back()

    def take_over(self, opened: Opened, rank: int = 0) -> None:
        """Goes on from what `open` found, here or, with its number, in another process.

        Raises InputError where this process sees another folder than that of `open`.
        """
        opened.manifest.folder = self.outdir
        same = opened.manifest.mark() == opened.mark
        # Another folder may begin with the same lines, and go on with files that the first process lacks.
        if not same or not opened.missing.isdisjoint(opened.manifest.catch_up()):
            raise InputError(f"The machines do not share {self.outdir}: give an --outdir that all see.")
        if rank:
            self._claim(opened.files, rank)
        self.manifest, self.files, self.resumed = opened.manifest, opened.files, opened.resumed
        files, missing = opened.files, opened.missing
        self.had_to_write = bool(missing)
        # What is not there yet, and the pictures that each missing sheet still waits for.
        self.left = {name: k for k in range(files.pictures) if (name := files.picture(k)) in missing}
        self.sheets_left = {name: i for i in self.shares if (name := files.sheet(i)) in missing}
        self.waiting = {
            i: {k for k in self.shares[i] if files.picture(k) in self.left} for i in self.sheets_left.values()
        }
        if self.arguments.skip_save:
            self.in_files = sum(len(share) for i, share in self.shares.items() if i not in self.waiting)
        else:
            self.in_files = len(self.jobs) - len(self.left)

    @property
    def done(self) -> int:
        """How many pictures are made, as far as is known here."""
        return self.in_files + self.in_hand

    def _is_there(self, k: int, manifest: Manifest, files: Files) -> bool:
        """Whether picture k is on disk. Raises InputError where something else is in its place."""
        name = files.picture(k)
        path = self.outdir / name
        if name in manifest.known:
            return manifest.holds(name)
        if not path.exists():
            return False

        # A run killed between a picture and its line leaves the picture, which says what it is.
        if not self.recipe(self.jobs[k]).made(path):
            raise InputError(f"{path} is in the place of a picture of this run and is none: move it away.")
        manifest.add(name, **asdict(self.jobs[k]))
        return True

    def units(self, at_once: int) -> list[range]:
        """What has to be drawn, in pieces that belong together."""
        if self.arguments.skip_save and self.shares:
            return [self.shares[i] for i in self.waiting]
        total = len(self.jobs)
        batches = [range(start, min(start + at_once, total)) for start in range(0, total, at_once)]
        if self.arguments.skip_save:
            return batches
        # Where one of a batch is missing all are drawn: in other company it might differ by a bit.
        return [batch for batch in batches if any(self.files.picture(k) in self.left for k in batch)]

    def ready_sheets(self) -> list[int]:
        """The sheets that are missing though all their pictures are there."""
        return [] if self.arguments.skip_save else [i for i, ks in self.waiting.items() if not ks]

    def keep(self, k: int, picture: Picture) -> None:
        """Writes picture k with all that it depends on, and the sheet for which it was the last."""
        i = k // self.sheets.size
        if self.arguments.skip_save:
            self.in_hand += 1
            if i in self.waiting:
                self.unsaved.append(picture)
                if len(self.unsaved) == len(self.shares[i]):
                    self._save_sheet(i, self.unsaved)
                    self.in_hand -= len(self.unsaved)
                    self.unsaved = []
            return
        name = self.files.picture(k)
        if name in self.left:
            self.recipe(self.jobs[k]).save(self.outdir / name, picture)
            self._write_down(name, **asdict(self.jobs[k]))
            # Whoever writes the last of a sheet's lines makes the sheet.
            if i in self.waiting and not self.waiting[i]:
                self.make_sheet(i)

    def make_sheet(self, i: int) -> None:
        """Writes sheet i from the pictures on disk."""
        self._save_sheet(i, [read_picture(self.outdir / self.files.picture(k)) for k in self.shares[i]])

    def _save_sheet(self, i: int, pictures: list[Picture]) -> None:
        name = self.files.sheet(i)
        self.sheets.save(self.outdir / name, i, pictures)
        self._write_down(name)

    def _write_down(self, name: str, **details: Any) -> None:
        self._note(self.manifest.add(name, **details))
        self.closes = not self.left and not self.sheets_left

    def catch_up(self) -> None:
        """Takes note of what other processes have finished."""
        self._note(self.manifest.catch_up())

    def _note(self, names: Iterable[str]) -> None:
        for name in names:
            if (k := self.left.pop(name, None)) is not None:
                self.in_files += 1
                self.waiting.get(k // self.sheets.size, set()).discard(k)
            if (i := self.sheets_left.pop(name, None)) is not None and self.arguments.skip_save:
                self.in_files += len(self.shares[i])
