"""What FreeU does under the settings at hand: the decoder blocks it meets, its filter's gain, and when."""

from html import escape

import numpy as np
import torch
from numpy.typing import NDArray

from ldm.freeu import TRAINING_STEPS, FreeUSettings, fourier_filter
from ldm.page import svg
from ldm.page.settings import Settings
from ldm.page.studio import Studio

SHOWN = 3  # frequencies to each side of zero


def filter_gain(height: int, width: int, threshold: int, s: float) -> NDArray[np.float64]:
    """By how much the skip filter multiplies each frequency of maps (height, width): the same, zero first.

    It is measured: the spectrum of what the filter makes of a single bright point.
    """
    point = torch.zeros(1, 1, height, width, dtype=torch.float64)
    point[..., 0, 0] = 1
    return torch.fft.fft2(fourier_filter(point, threshold, s))[0, 0].real.numpy()


def markup(studio: Studio, settings: Settings) -> str:
    """The explanation as HTML. Raises InputError where the settings mean nothing."""
    freeu = studio.freeu(settings)
    stages = studio.unet.decoder_stages
    factors = studio.unet.factors_of(freeu)
    f = studio.model.first_stage_model.downsampling
    height, width = settings.height // f, settings.width // f
    sizes = [(height // stage.downsampling, width // stage.downsampling) for stage in stages]
    met = studio.unet.hit_blocks(freeu)
    rows = []
    for i, (stage, (b, s), (down, across)) in enumerate(zip(stages, factors, sizes, strict=True)):
        hit = ' class="hit"' if i in met else ""
        rows.append(
            f"<tr{hit}><th scope=row>{i}</th><td>{down}×{across}</td>"
            f"<td>{stage.width} + {stage.skip_width}</td>"
            f"<td>{changed(b)}</td><td>{changed(s)}</td></tr>"
        )
    structured = " where the picture has structure" if freeu.version == 2 else ""
    words = (
        f"FreeU meets {len(met)} of {len(stages)} decoder blocks. There it multiplies "
        f"{which_channels(freeu)} of the backbone's channels by b{structured}, and the skip's lowest "
        "frequencies by s."
    )
    table = (
        '<div class="scroll"><table class="blocks">'
        "<caption>The decoder, from the lowest resolution up</caption>"
        "<thead><tr><th scope=col>block</th><th scope=col>map</th>"
        "<th scope=col>channels: backbone + skip</th><th scope=col>b</th><th scope=col>s</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    gains = []
    for s in dict.fromkeys(s for _, s in factors if s != 1):
        size = next(size for size, pair in zip(sizes, factors, strict=True) if pair[1] == s)
        gains.append(gain_picture(*size, freeu.threshold, s))
    when = timeline(freeu)
    return (
        f'<div class="explain"><p>{escape(words)}</p>{table}'
        f'<div class="plots">{"".join(gains)}{when}</div></div>'
    )


def changed(factor: float) -> str:
    return "–" if factor == 1 else f"{factor:g}"


def which_channels(freeu: FreeUSettings) -> str:
    names = {
        "first": "the first half",
        "second": "the second half",
        "alternate": "every other one",
        "all": "all",
    }
    return names.get(str(freeu.channels)) or f"the first {100 * float(freeu.channels):g} %"


def gain_picture(height: int, width: int, threshold: int, s: float) -> str:
    """The middle of the filter's gain on maps of that size."""
    gain = np.fft.fftshift(filter_gain(height, width, threshold, s))
    down, across = (np.fft.fftshift(np.fft.fftfreq(n, 1 / n)).astype(int) for n in (height, width))
    rows, columns = (np.abs(k) <= SHOWN for k in (down, across))
    row_names, column_names = (
        [f"{k:+d}".replace("-", "−") if k else "0" for k in ks] for ks in (down[rows], across[columns])
    )
    title = f"Gain of the skip's filter at s = {s:g}, by cycles a map ({height}×{width})"
    return svg.cells(gain[rows][:, columns], row_names, column_names, title)


def timeline(freeu: FreeUSettings) -> str:
    """How much FreeU acts, over the denoising run."""
    t = torch.arange(TRAINING_STEPS - 1, -1, -10)
    weight = freeu.weight(t, torch.arange(TRAINING_STEPS)).numpy()
    share = np.linspace(0, 1, len(weight))
    ticks = {0.0: "noise", 0.25: "¼", 0.5: "½", 0.75: "¾", 1.0: "picture"}
    return svg.curves(
        {"share of FreeU": weight}, share, "When it acts", "the denoising run", "", ticks, (0, 1)
    )
