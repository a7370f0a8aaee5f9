"""Prompts of any Unicode, on the command line and in files of any bytes, and what their pictures hold."""

from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from ldm.txt2img.recipe import read_recipe
from tests.fuzz.conftest import SMALL
from tests.fuzz.harness import cases, run

ANY = st.text(st.characters(codec=None), max_size=80)  # surrogates too
CONTROL = st.text(st.sampled_from("\0\a\b\t\n\v\f\r\x1b\x7f\x85\u2028\ufeff\u202e a"), max_size=20)
LONG = st.builds(
    lambda text, count: text * count, st.text(min_size=1, max_size=3), st.sampled_from([9999, 10**6 // 3])
)


@cases(0.1)
@given(prompt=ANY | CONTROL | LONG, negative=ANY | CONTROL)
@example(prompt="\0", negative="")
@example(prompt="a" * 10**6, negative="b" * 10**6)
@example(prompt="é" * 10**6, negative="")
def test_any_prompt_draws_and_comes_back_out_of_its_picture_or_is_refused(
    folder: Path, tiny_checkpoint: Path, prompt: str, negative: str
) -> None:
    argv = ["--ckpt", str(tiny_checkpoint), *SMALL, f"--prompt={prompt}", f"--negative-prompt={negative}"]
    ended = run(folder, *argv)
    if ended.code == 0:
        [picture] = ended.pictures
        recipe = read_recipe(picture)
        assert (recipe.prompt, recipe.negative_prompt) == (prompt, negative)
    else:
        assert any("\ud800" <= letter <= "\udfff" for letter in prompt + negative), ended.err


LINES = st.lists(st.text(max_size=12) | CONTROL, max_size=3)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])
ENCODED = st.builds(
    lambda mark, lines, end, encoding: mark + end.join(lines).encode(encoding, "replace"),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0"]),
    LINES,
    ENDS,
    st.sampled_from(["utf-8", "latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-16", "utf-32", "utf-7"]),
)


@cases(0.08)
@given(content=st.binary(max_size=50) | ENCODED)
def test_a_prompt_file_of_any_bytes_draws_or_is_refused(
    folder: Path, tiny_checkpoint: Path, content: bytes
) -> None:
    path = folder / "prompts.txt"
    path.write_bytes(content)
    run(folder, "--ckpt", str(tiny_checkpoint), *SMALL, "--skip_grid", "--from-file", str(path))
