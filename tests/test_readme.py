"""The README files show pictures that come with the code, and commands that the scripts take."""

import io
import re
import runpy
import shlex
import subprocess
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from ldm.folders import ROOT
from ldm.freeu.settings import PRESETS, FreeUSettings

PAGES = ["README.md", "checkpoints/README.md"]
ALL_PAGES = [*PAGES, "ldm/study/bench/README.md"]  # the last has no commands
LINK = re.compile(r"\]\(([^)#]+)?(?:#([^)]*))?\)")
COMMAND = re.compile(r"python (scripts/\w+\.py)((?:[^`\n&#\\]|\\\n)*)")


def carried() -> set[str]:
    """What a clone holds; in an unpacked archive, which git knows nothing of, what lies there."""
    if not (ROOT / ".git").exists():
        return {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())


@cache
def help_of(*argv: str) -> str:
    """What a script says of itself; `argv` begins with its path."""
    script, *words = argv
    with redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / script))["main"]([*words, "--help"])
    return said.getvalue()


@pytest.mark.parametrize("page", ALL_PAGES)
def test_every_picture_and_page_that_is_linked_comes_with_the_code(page: str) -> None:
    files = carried()
    links = [file for file, _ in LINK.findall((ROOT / page).read_text("utf-8")) if file and ":" not in file]
    assert links
    for link in links:
        target = (ROOT / page).parent.joinpath(link).resolve().relative_to(ROOT.resolve())
        assert target.as_posix() in files, f"{page} shows {link}, which a clone does not have"


@pytest.mark.parametrize("page", ALL_PAGES)
def test_every_section_that_is_linked_is_there(page: str) -> None:
    path = ROOT / page
    for file, section in LINK.findall(path.read_text("utf-8")):
        if section and ":" not in file:
            text = (path.parent / file if file else path).read_text("utf-8")
            heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            assert section in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_of_a_command_is_one_that_its_script_has(page: str) -> None:
    commands = COMMAND.findall((ROOT / page).read_text("utf-8"))
    assert commands
    for script, rest in commands:
        words = shlex.split(rest.replace("\\\n", " "))
        kind = [words[0]] if script.endswith("user_study.py") else []
        known = set(re.findall(r"--[\w-]+", help_of(script, *kind)))
        flags = {word for word in words if word.startswith("--")}
        assert flags <= known, f"{page}: {script} has no {', '.join(flags - known)}"


def test_every_config_that_is_named_is_there() -> None:
    for page in PAGES:
        for name in re.findall(r"--config ([\w./-]+\.yaml)", (ROOT / page).read_text("utf-8")):
            assert any(Path(ROOT, folder, name).is_file() for folder in ("", "configs")), f"{page}: {name}"


def test_every_setting_and_preset_of_freeu_is_named() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.partition("## FreeU's settings")[2].partition("\n## ")[0]
    for field in fields(FreeUSettings):
        assert re.search(rf"`{field.name}(`[,:]|:)|\+ +{field.name}:", section), field.name
    presets = re.search(r"# Presets: (.+)", text)
    assert presets and set(presets[1].split(", ")) == {name for name, _ in PRESETS}


def test_flags_that_are_told_in_passing_are_ones_that_some_script_has() -> None:
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    told = {flag for code in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"(?<!\S)--[\w-]+", code)}
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    helps = [help_of(str(path)) for path in scripts]
    helps += [help_of("scripts/user_study.py", kind) for kind in ("make", "tally")]
    known = {flag for text in helps for flag in re.findall(r"--[\w-]+", text)}
    assert told and told <= known, f"no script has {', '.join(told - known)}"
