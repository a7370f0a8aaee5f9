"""What a study ends with: the table of claims, and one page with every figure."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from ldm.config.freeu import FACTORS
from ldm.files import written_whole
from ldm.freeu import NEUTRAL, FreeUSettings
from ldm.study.claims import Check
from ldm.study.figures.figure import Figure, Variants

MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?"}

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #28282e; background: #fff; margin: 2.5rem auto;
  max-width: 62rem; padding: 0 1.2rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem }
h2 { font-size: 1.15rem; margin: 3.5rem 0 .6rem }
table { border-collapse: collapse; width: 100%; font-size: .88rem }
th { text-align: left; font-weight: 600 }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #d9d9d4; vertical-align: top }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
td.verdict { font-weight: 600; min-width: 8rem }
.holds { color: #00664b } .does.not.hold { color: #a84600 } .undecided { color: #5f5f66 }
small { font-weight: 400; color: #4a4a52 }
img { display: block; max-width: 100%; height: auto } .scroll { overflow-x: auto }
.small { font-size: .88rem; color: #4a4a52 } a { color: #0060a0 }
"""


@dataclass(frozen=True)
class Drawn:
    """A figure that is done: what became of its claims, and the settings that its variants stand for."""

    figure: Figure
    checks: list[Check]
    variants: Variants


def number(value: float) -> str:
    """A number to three figures, with its sign and a true minus."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:+.3g}".replace("-", "−")


def outcome(check: Check) -> str:
    """A check's mean and interval, as 0.21 [0.15, 0.27]."""
    return f"{number(check.mean)} [{number(check.low)}, {number(check.high)}]"


def claims_table(drawn: Sequence[Drawn], facts: str) -> str:
    """The claims and what became of them, as Markdown."""
    lines = [
        "| figure | claim | difference, 95 % interval | verdict |",
        "|---|---|---|---|",
        *(
            f"| {one.figure.label} | {check.claim} | {check.quantity}: {outcome(check)} | {verdict(check)} |"
            for one in drawn
            for check in one.checks
        ),
    ]
    return "\n".join([*lines, "", facts, ""])


def verdict(check: Check) -> str:
    return f"{check.verdict} ({check.note})" if check.note else check.verdict


def encoded(text: str) -> bytes:
    """A text in UTF-8; of names of files, which may be any bytes, those that are no text are escaped."""
    return text.encode(errors="backslashreplace")


def write_claims(drawn: Sequence[Drawn], facts: str, folder: Path) -> str:
    """Writes claims.md and returns what is in it."""
    table = claims_table(drawn, facts)
    with written_whole(folder / "claims.md") as file:
        file.write(encoded(table))
    return table


def write_page(drawn: Sequence[Drawn], facts: str, config: str, folder: Path) -> None:
    """Writes figures.html, which shows the figures that lie beside it."""
    rows = "".join(
        f'<tr><td><a href="#{one.figure.stem}">{one.figure.label}</a></td>{cells(check)}</tr>'
        for one in drawn
        for check in one.checks
    )
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>FreeU's figures, measured</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head><body>
<h1>FreeU's figures, measured on {escape(config)}</h1>
<p class="small">{escape(facts)}</p>
<div class="scroll"><table><thead><tr><th>figure</th><th>claim</th><th>difference, 95 % interval</th>
<th>verdict</th></tr></thead><tbody>{rows}</tbody></table></div>
{"".join(section(one) for one in drawn)}
</body></html>
"""
    with written_whole(folder / "figures.html") as file:
        file.write(encoded(page))


def cells(check: Check) -> str:
    """A check as cells of a table's row: claim, numbers, verdict."""
    note = f"<br><small>{escape(check.note)}</small>" if check.note else ""
    return (
        f"<td>{escape(check.claim)}<br><small>{escape(check.quantity)}</small></td>"
        f'<td class="number">{outcome(check)}</td>'
        f'<td class="verdict {check.verdict}">{MARKS[check.verdict]} {check.verdict}{note}</td>'
    )


def section(one: Drawn) -> str:
    """A figure on the page: picture, caption, verdicts, the settings of its variants, links to its files."""
    figure = one.figure
    verdicts = "".join(f"<tr>{cells(check)}</tr>" for check in one.checks)
    links = " · ".join(
        f'<a href="{figure.stem}.{kind}">{kind.upper()}</a>' for kind in ("pdf", "csv", "json")
    )
    variants = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(described(freeu))}</td></tr>"
        for name, freeu in one.variants.items()
    )
    return f"""
<h2 id="{figure.stem}">Figure {figure.label}. {escape(figure.title)}</h2>
<img src="{figure.stem}.png" alt="{escape(figure.title)}">
<p class="small">{escape(figure.caption)} {links}</p>
<div class="scroll"><table>{verdicts}</table></div>
<details class="small"><summary>Settings</summary><table>{variants}</table></details>"""


def described(freeu: FreeUSettings | None) -> str:
    """FreeU's factors, and what else is not as usual, in a line."""
    if freeu is None:
        return "the plain model"
    usual = asdict(NEUTRAL)
    values = asdict(freeu)
    told = [name for name in values if name in FACTORS or values[name] != usual[name]]
    return ", ".join(f"{name} {values[name]}" for name in told)
