"""What makes one picture: the settings that go into its PNG and come out of it again."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ldm.config.annotations import fits
from ldm.errors import InputError
from ldm.image_io import Picture, is_whole, read_record, save_png

Stages = dict[str, list[float]]  # (b, s) by width
WEBUI_SAMPLERS = {"ddim": "DDIM", "plms": "PLMS", "dpm": "DPM++ 2M"}


@dataclass(frozen=True)
class Recipe:
    """All that a picture depends on; the names are those of txt2img's arguments."""

    prompt: str
    negative_prompt: str
    seed: int  # of this picture
    height: int
    width: int
    steps: int
    scale: float
    sampler: str
    eta: float
    config: str
    ckpt: str | None
    precision: str
    overrides: list[str]
    freeu: dict[str, float | str | Stages] | None  # the fields of FreeUSettings; None for the plain model
    compare: bool  # FreeU off and on, side by side

    def parameters(self) -> str:
        """The settings in the lines that Stable Diffusion webuis write and read."""
        entries = {
            "Steps": self.steps,
            "Sampler": WEBUI_SAMPLERS[self.sampler],
            "CFG scale": self.scale,
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            # A file's name need not be UTF-8, and a PNG's text has to be.
            "Model": Path(self.ckpt or self.config).stem.encode(errors="backslashreplace").decode(),
        }
        if self.eta:
            entries["Eta DDIM"] = self.eta
        if self.freeu:
            entries["FreeU"] = " ".join(f"{key}={it}" for key, it in self.freeu.items() if it != {})
        negative = f"Negative prompt: {self.negative_prompt}\n" if self.negative_prompt else ""
        return f"{self.prompt}\n{negative}" + ", ".join(f"{key}: {quoted(it)}" for key, it in entries.items())

    def save(self, path: Path, picture: Picture) -> None:
        """Writes the picture made by this recipe as a PNG that carries it."""
        save_png(path, picture, self.parameters(), asdict(self))

    def made(self, path: Path) -> bool:
        """Whether a file is a whole picture by this recipe."""
        try:
            return read_record(path) == json.loads(json.dumps(asdict(self))) and is_whole(path)
        except InputError:
            return False


def quoted(value: Any) -> str:
    """A value as webuis write it: in quotes where it holds their separators."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def read_recipe(path: Path) -> Recipe:
    """The recipe of a PNG that txt2img wrote. Raises InputError where it has none, or not all of one."""
    record = read_record(path)
    hints = get_type_hints(Recipe)
    for name, hint in hints.items():
        if name not in record:
            raise InputError(f"The settings in {path} lack {name!r}: another version wrote it.")
        if not fits(record[name], hint):
            raise InputError(f"The settings in {path} are damaged: {name} is {record[name]!r:.99}.")
    return Recipe(**{name: record[name] for name in hints})
