"""Where a checkpoint lies."""

import difflib
import os
from pathlib import Path

from ldm.errors import InputError
from ldm.folders import CHECKPOINTS, EMBEDDED
from ldm.weights.download import KNOWN_FILES
from ldm.weights.download import download as fetch

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")


def find_checkpoint(name: str | Path, download: bool = False) -> Path:
    """The file of that path, or of that bare name in `checkpoints/`; `download` fetches a missing one."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111, as Path.expanduser fails on a stranger's home
    bare = path.name == str(path)
    home, embedded = (CHECKPOINTS / path, EMBEDDED / path) if bare else (path, path)
    for place in (path, home, embedded):
        if os.path.exists(place):  # noqa: PTH110, as Path.exists fails on names that are too long
            return place
    if download:
        return fetch(home.name, into=home.parent)
    for place in (path, home, embedded):
        if os.path.islink(place):  # noqa: PTH114, as above
            target = place.readlink()
            raise InputError(
                f"The checkpoint {place} is a link to {target}, which is not there: link it anew, or put the "
                "file itself here."
            )

    looked = f"at {path}" if home == path else f"{path}, here or in {CHECKPOINTS}"
    there = sorted(it.name for it in CHECKPOINTS.glob("*") if it.suffix in SUFFIXES)
    known = KNOWN_FILES.get(home.name)
    if known is None:
        stems = {Path(it).stem: it for it in (*there, *KNOWN_FILES)}
        near = [stems[it] for it in difflib.get_close_matches(home.stem, stems)]
        names = f"There are {', '.join(there) or 'none'}; of others README tells of {', '.join(KNOWN_FILES)}."
        hint = f"Is {' or '.join(near)} meant?" if near else names
        raise InputError(f"There is no checkpoint {looked}. {hint}")
    size = f", {known.bytes / 1e9:.1f} GB" if known.bytes else ""
    digest = f", sha256 {known.sha256}" if known.sha256 else ""
    fetching = ", or add --download to have it fetched" if known.sha256 else ""
    alike = [it for it in there if it.startswith(home.stem)]
    instead = f" Or take what is there: --ckpt {' or '.join(alike)}." if alike else ""
    raise InputError(
        f"There is no checkpoint {looked}.\nThe file of that name in {known.repo} on the hub is meant"
        f"{size}{digest}: put it there{fetching}.{instead}"
    )
