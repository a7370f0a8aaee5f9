"""The labelled sheets of a grid, and of FreeU off beside on."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ldm.config.freeu import FACTORS, FREEU
from ldm.freeu import NEUTRAL, FreeUSettings
from ldm.image_io import Picture, read_record, save_png
from ldm.txt2img.recipe import Recipe, quoted
from ldm.txt2img.settings_grid import Axis, shown
from ldm.txt2img.sheets import Words, labelled, tiled


class GridSheets:
    """The sheets of a grid: the first setting from left to right, the second downwards, the third by sheets.

    A grid of one setting goes on in rows. `plain` has what all cells share, and `freeu` FreeU's part in that,
    None for a model without it.
    """

    least = 1

    def __init__(self, axes: Sequence[Axis], plain: Recipe, freeu: FreeUSettings | None):
        # A picture keeps FreeU's settings where they act; those of a sheet act once an axis changes one.
        if freeu is not None and any(axis.name in FREEU for axis in axes):
            plain = replace(plain, freeu={name: getattr(freeu, name) for name in FREEU})
        self.axes, self.plain = axes, plain
        self.columns = axes[0].labels
        self.rows = axes[1].labels if len(axes) > 1 else []
        self.headings = axes[2].labels if len(axes) > 2 else [""]
        self.size = len(self.columns) * max(1, len(self.rows))  # pictures on each

    def draw(self, i: int, pictures: Sequence[Picture]) -> Picture:
        """Sheet i of its pictures, in order."""
        words = Words(
            self.headings[i], self.plain.prompt, small_print(self.plain, [axis.name for axis in self.axes])
        )
        if not self.rows:
            return tiled(pictures, self.columns, words)
        step = len(self.columns)
        rows = [pictures[start : start + step] for start in range(0, len(pictures), step)]
        return labelled(rows, [self.columns], self.rows, words)

    def save(self, path: Path, i: int, pictures: Sequence[Picture]) -> None:
        """Writes sheet i with the settings that all its cells share, and its axes."""
        shown_here = [*self.axes[:2], *(Axis(it.name, it.values[i : i + 1]) for it in self.axes[2:])]
        words = [str(axis) for axis in shown_here]
        parameters = f"{self.plain.parameters()}, Grid: {quoted(' '.join(words))}"
        save_png(path, self.draw(i, pictures), parameters, {**asdict(self.plain), "grid": words})


def read_grid(path: Path) -> list[str] | None:
    """The grid that a sheet shows, as it is written after --grid; None for other pictures."""
    words = read_record(path).get("grid")
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def side_by_side(off: Picture, on: Picture, recipe: Recipe, freeu: FreeUSettings) -> Picture:
    """FreeU off and on, with what made them."""
    b, s = f"{freeu.b1:g}, {freeu.b2:g}", f"{freeu.s1:g}, {freeu.s2:g}"
    heads = ["FreeU off", f"FreeU V{freeu.version}: b {b}; s {s}"]
    words = Words(caption=recipe.prompt, small_print=small_print(recipe, (*FACTORS, "version")))
    return labelled([[off, on]], [heads], words=words)


def small_print(recipe: Recipe, named: Collection[str] = ()) -> list[str]:
    """What made a picture, in parts short enough for small type; `named` settings stand elsewhere."""
    said = {
        "seed": f"seed {recipe.seed}",
        "steps": f"{recipe.steps} steps",
        "sampler": recipe.sampler,
        "scale": f"guidance {recipe.scale:g}",
        "eta": f"eta {recipe.eta:g}" if recipe.eta else "",
    }
    parts = [text for name, text in said.items() if text and name not in named]
    if recipe.negative_prompt:
        parts.append(f"without {recipe.negative_prompt}")
    freeu = recipe.freeu or {}
    for name in sorted(freeu, key=lambda name: name != "version"):
        value = freeu[name]
        usual = name not in (*FACTORS, "version") and value == getattr(NEUTRAL, name)
        if name in FREEU and name not in named and not usual:
            parts.append(f"{'FreeU V' if name == 'version' else name + ' '}{shown(value)}")
    return [Path(recipe.ckpt or recipe.config).stem, *parts]
