"""How all plots look: type, colours, sizes."""

from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

PAGE = 7.0  # inches, the width of both columns of a page; type is read at that size

INK, FAINT = "#28282e", "#d9d9d4"
# Okabe and Ito's colours, told apart by all kinds of eyes; each comes with dashes of its own besides.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
# From light to dark, even in lightness, without the yellow end that paper swallows.
SEQUENCE = LinearSegmentedColormap.from_list(
    "sequence", matplotlib.colormaps["viridis_r"](np.linspace(0.12, 1, 64))
)

STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 7.5, "mathtext.fontset": "dejavusans",
    "axes.titlesize": 7.5, "axes.labelsize": 7.5, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "legend.handlelength": 2.6,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": FAINT, "grid.linewidth": 0.5,
    "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlepad": 4,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 0,
    "lines.linewidth": 1.3, "image.interpolation": "nearest",
    "savefig.dpi": 220, "figure.facecolor": "white", "pdf.fonttype": 42,
}  # fmt: skip


def style() -> AbstractContextManager[None]:
    """The context in which figures are drawn and saved."""
    return matplotlib.rc_context(STYLE)


def new_sheet(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose parts make room for each other's labels."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.03))
