"""Pictures on disk: PNGs that carry their settings, and grids of pictures."""

import base64
import io
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ldm.errors import InputError
from ldm.files import written_whole

Picture = NDArray[np.uint8]  # (H, W, 3)
Record = dict[str, Any]

PAPER, INK = (250, 250, 248), (40, 40, 46)


def save_png(path: Path, picture: Picture, parameters: str = "", record: Record | None = None) -> None:
    """Writes a picture with the text that webuis read (`parameters`) and all settings as JSON (`freeu`)."""
    info = PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    if record is not None:
        info.add_text("freeu", json.dumps(record))
    with written_whole(path) as file:
        Image.fromarray(picture).save(file, format="PNG", pnginfo=info)


def data_uri(picture: Picture, kind: str = "PNG", **options: Any) -> str:
    """A picture as an address that holds it whole, with no text or date in it."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def read_record(path: Path) -> Record:
    """The record that `save_png` put into a picture. Raises InputError where there is none."""
    try:
        with Image.open(path) as image:
            text, of_webui = image.info.get("freeu"), "parameters" in image.info
    except FileNotFoundError:
        raise InputError(f"There is no picture {path}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as fault:
        raise InputError(f"{path} is not a picture that can be read: {fault}") from None
    try:
        record = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        if of_webui:
            raise InputError(f"{path} carries a webui's settings, which scripts/demo.py alone takes.")
        raise InputError(
            f"{path} carries no settings: this project's pictures do, and sheets of --prompt's pictures, "
            "not those of --from-file."
        )
    return record


def is_whole(path: Path) -> bool:
    """Whether a file is a PNG whose checksums are all right."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return False
    return True


def read_picture(path: Path) -> Picture:
    """The pixels of a picture, (H, W, 3). Raises InputError where it cannot be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as fault:
        raise InputError(f"{path} cannot be read: {fault}") from None
    except (OSError, SyntaxError, ValueError) as fault:
        raise InputError(f"{path} is not a picture that can be read: {fault}") from None


def writable_folder(path: Path) -> Path:
    """The folder, made where it is not there yet. Raises InputError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as fault:
        raise InputError(f"Nothing can be written into {path}: {fault.strerror}. Choose another.") from None


def next_number(folder: Path, prefix: str = "") -> int:
    """One above the highest number among files such as 00012.png, with that prefix, in a folder."""
    stems = [path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.png")]
    return max((int(stem) + 1 for stem in stems if stem.isdecimal()), default=0)


def grid(pictures: Sequence[Picture], columns: int, margin: int = 4) -> Picture:
    """Pictures in rows of `columns`, on paper with even margins; in cells that the largest of them fills."""
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height, width = (max(picture.shape[axis] for picture in pictures) + margin for axis in (0, 1))
    sheet = np.empty((rows * height + margin, columns * width + margin, 3), np.uint8)
    sheet[:] = PAPER
    for i, picture in enumerate(pictures):
        top, left = margin + i // columns * height, margin + i % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet
