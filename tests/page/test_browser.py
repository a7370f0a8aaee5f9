"""The page in a real browser, as its visitors see it."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import InputError
from tests.page.conftest import PROMPT, Served, Tab


def test_a_prompt_gives_two_pictures_that_are_txt2imgs_to_the_bit(tab: Tab, txt2img, tmp_path: Path):
    tab.open(seed=7)
    tab.page.fill("#prompt textarea", PROMPT)
    tab.page.keyboard.press("Enter")
    tab.wait_for("done")
    assert tab.page.locator(".stage img").count() == 2
    same = ("--prompt", PROMPT, "--seed", 7)
    for side, more in {"plain": ["--no-freeu"], "freeu": []}.items():
        [path] = txt2img(*same, *more).pictures()
        np.testing.assert_array_equal(tab.pixels(side, tmp_path), np.asarray(Image.open(path)))
    assert not tab.errors


def test_moving_b1_draws_freeus_picture_anew_and_leaves_the_plain_one(tab: Tab, tmp_path: Path):
    tab.open(prompt=PROMPT).draw()
    before = {side: tab.pixels(side, tmp_path) for side in ("plain", "freeu")}

    def drag() -> None:
        box = tab.page.locator("#b1 input[type=range]").bounding_box()
        tab.page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] / 2)
        tab.page.mouse.down()
        tab.page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2, steps=3)
        tab.page.mouse.up()

    tab.draw(drag)
    assert float(tab.value("b1").split()[0]) > 1.5
    np.testing.assert_array_equal(tab.pixels("plain", tmp_path), before["plain"])
    assert (tab.pixels("freeu", tmp_path) != before["freeu"]).any()


def test_a_factor_that_is_moved_by_a_key_reset_or_entered_draws_anew(tab: Tab):
    tab.open(prompt=PROMPT, s2=0.4).draw()
    tab.page.focus("#s2 input[type=range]")
    tab.draw(lambda: tab.page.keyboard.press("End"))
    assert float(tab.page.input_value("#s2 input[type=number]")) == 1.5
    tab.draw(lambda: tab.page.click("#s2 .reset-button"))
    assert float(tab.page.input_value("#s2 input[type=number]")) < 1.5
    tab.page.fill("#s2 input[type=number]", "0.55")
    tab.draw(lambda: tab.page.keyboard.press("Enter"))
    assert "FreeU 1.1 1.2 0.9 0.55" in tab.page.inner_text(".stage .caption")


def test_leaving_a_number_box_draws_only_what_has_changed(
    tab: Tab, served: Served, monkeypatch: pytest.MonkeyPatch
):
    follow, begun = served.engine.follow, []
    monkeypatch.setattr(served.engine, "follow", lambda *work: begun.append(work) or follow(*work))
    tab.open(prompt=PROMPT).draw()
    tab.page.focus("#b1 input[type=number]")
    for _ in range(6):
        tab.page.keyboard.press("Tab")
    tab.page.fill("#s1 input[type=number]", "0.7")
    tab.draw(lambda: tab.page.keyboard.press("Tab"))
    assert "FreeU 1.1 1.2 0.7 0.6" in tab.page.inner_text(".stage .caption")
    tab.page.wait_for_function("document.querySelector('#history').innerText.includes('0.7')")
    assert tab.page.locator("#history .thumbnail-item").count() == 4
    assert len(begun) == 2


def test_a_number_box_may_be_empty_or_out_of_range_while_one_writes(tab: Tab):
    failed: list[str] = []
    tab.page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    tab.open(prompt=PROMPT)
    tab.page.get_by_role("tab", name="Explain").click()
    explained = "document.querySelector('#explain').innerText.includes"
    tab.page.fill("#b1 input[type=number]", "")
    tab.page.wait_for_function(f"{explained}('The b1 is None: give a finite number.')")
    tab.page.evaluate("document.querySelector('#draw').click()")
    tab.wait_for("error")
    assert tab.status == "The b1 is None: give a finite number."
    tab.page.fill("#b1 input[type=number]", "1.3")
    tab.page.fill("#height input[type=number]", "9")
    tab.page.wait_for_function(f"{explained}('The height of 9 pixels is no multiple of 32')")
    tab.page.keyboard.press("Tab")
    tab.draw()
    assert not failed


def test_the_factors_source_follows_the_controls(tab: Tab):
    tab.open(prompt=PROMPT)
    assert "the factors in freeu_tiny.yaml" in tab.page.inner_text("#factors")
    tab.page.fill("#b1 input[type=number]", "1.73")
    tab.page.keyboard.press("Tab")
    tab.page.wait_for_function("/set by hand/.test(document.querySelector('#factors').innerText)")
    assert tab.value("preset") == "Your own"
    tab.page.click("#preset input")
    tab.page.get_by_role("option", name="Stable Diffusion 2.1, version 2").click()
    tab.page.wait_for_function(
        "/published by FreeU's authors/.test(document.querySelector('#factors').innerText)"
    )
    assert (tab.value("preset"), float(tab.value("b1"))) == ("Stable Diffusion 2.1, version 2", 1.4)
    tab.page.click("#preset input")
    tab.page.get_by_role("option", name="Your own").click()
    tab.page.wait_for_timeout(500)
    assert float(tab.value("b1")) == 1.4
    assert not tab.errors


def test_a_dropped_picture_sets_the_controls(tab: Tab, txt2img):
    [path] = txt2img(
        "--prompt", "a white cross", "--seed", 99, "--b1", 1.33, "--dpm", "--scale", 4.5
    ).pictures()
    tab.open()
    tab.page.set_input_files("#dropped input[type=file]", path)
    tab.page.wait_for_function("document.querySelector('#seed input, #seed textarea').value === '99'")
    assert tab.value("prompt") == "a white cross"
    assert float(tab.value("b1")) == 1.33
    assert tab.page.is_checked("#sampler input[value=dpm]")
    assert "The controls now have this picture's settings." in tab.page.inner_text("#told")


def test_controls_that_are_said_to_stay_do_when_a_picture_is_dropped(tab: Tab, txt2img):
    [path] = txt2img("--no-freeu", "--seed", 98).pictures()
    tab.open(b1=1.55, s2=0.1)
    tab.page.fill("#steps input[type=number]", "")
    tab.page.set_input_files("#dropped input[type=file]", path)
    tab.page.wait_for_function("document.querySelector('#seed input, #seed textarea').value === '98'")
    assert "FreeU's controls stay as they were." in tab.page.inner_text("#told")
    assert (float(tab.value("b1")), float(tab.value("s2"))) == (1.55, 0.1)


def test_a_drawing_that_is_stopped_keeps_what_there_is(tab: Tab, tmp_path: Path):
    tab.open(prompt=PROMPT, steps=200, H=128, W=128)
    tab.page.click("#draw")
    tab.page.wait_for_function("/Step [1-9]/.test(document.querySelector('.stage .status').innerText)")
    tab.page.click("#stop")
    tab.wait_for("stopped")
    step = int(re.search(r"after step (\d+) of 200", tab.status)[1])
    assert 1 <= step < 200
    for side in ("plain", "freeu"):
        with Image.open(tab.download(side, tmp_path)) as picture:
            assert picture.size == (128, 128)
            assert f"Stopped after: {step} of 200" in picture.info["parameters"]


def test_previews_come_while_the_pictures_are_drawn(tab: Tab):
    tab.open(prompt=PROMPT, steps=200, H=128, W=128)
    tab.page.click("#draw")
    tab.page.wait_for_selector('.stage[data-state="running"] .plain img[src^="data:image/jpeg"]')
    tab.page.wait_for_selector('.stage[data-state="running"] .freeu img[src^="data:image/jpeg"]')
    tab.page.click("#stop")
    tab.wait_for("stopped")


def test_nothing_moves_while_pictures_arrive(tab: Tab):
    tab.open(prompt=PROMPT, steps=3)
    parts = "document.querySelectorAll('.stage .frame, .stage .status, #b1, #history')"
    places = f"[...{parts}].map(e => e.getBoundingClientRect().toJSON())"
    before = tab.page.evaluate(places)
    tab.draw()
    tab.page.wait_for_selector("#history .thumbnail-item")
    assert tab.page.evaluate(places) == before


def test_a_bad_setting_is_a_sentence_and_the_page_goes_on(tab: Tab):
    tab.open(prompt=PROMPT)
    tab.page.fill("#seed textarea, #seed input", "twelve")
    tab.page.click("#draw")
    tab.wait_for("error")
    assert tab.status == "The seed is 'twelve': give a whole number."
    tab.page.fill("#seed textarea, #seed input", "12")
    tab.draw()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (InputError("The latents are no longer numbers"), "no longer numbers"),
        (ZeroDivisionError("secret"), "Something went wrong here"),
    ],
    ids=["GPU memory", "memory", "a remedy is known", "a bug"],
)
def test_a_fault_while_drawing_is_a_sentence_and_the_page_goes_on(
    tab: Tab, served: Served, monkeypatch: pytest.MonkeyPatch, fault: Exception, told: str
):
    def raise_fault(*_: object) -> Iterator[None]:
        raise fault
        yield

    tab.open(prompt=PROMPT)
    with monkeypatch.context() as patched:
        patched.setattr(served.studio, "pairs", raise_fault)
        tab.page.click("#draw")
        tab.wait_for("error")
    assert told in tab.status and "secret" not in tab.status
    tab.draw()


def test_on_a_phone_nothing_is_wider_than_the_screen(tab: Tab):
    tab.page.set_viewport_size({"width": 390, "height": 844})
    tab.open(prompt=PROMPT).draw()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    order = [
        tab.page.locator(part).bounding_box()["y"] for part in ("#prompt", "#draw", ".stage", "#b1", "#seed")
    ]
    assert order == sorted(order)


def test_a_word_of_any_length_widens_nothing(tab: Tab):
    tab.open(prompt="x" * 500).draw()
    tab.page.get_by_role("tab", name="Look inside").click()
    tab.page.click("#look")
    tab.page.wait_for_selector(".inside .maps")
    wider = (
        "[...document.querySelectorAll('.stage, .words, .inside')]"
        ".filter(part => part.scrollWidth > part.clientWidth).map(part => part.className)"
    )
    assert tab.page.evaluate(wider) == []


def test_the_wipe_follows_the_keyboard(tab: Tab):
    tab.open(prompt=PROMPT).draw()
    tab.page.check(".stage input[value=wipe]", force=True)
    tab.page.focus(".stage .wipe")
    for _ in range(10):
        tab.page.keyboard.press("ArrowRight")
    shown = tab.page.evaluate("getComputedStyle(document.querySelector('.stage .freeu img')).clipPath")
    assert shown == "inset(0px 0px 0px 55%)"


def test_under_a_narrow_picture_no_name_lies_over_another(tab: Tab):
    tab.open(prompt=PROMPT, H=128, W=32).draw()
    tab.page.check(".stage input[value=wipe]", force=True)
    parts = [f".stage .{side} figcaption {part}" for side in ("plain", "freeu") for part in ("b", "a")]
    boxes = sorted((tab.page.locator(part).bounding_box() for part in parts), key=lambda box: box["x"])
    for left, right in pairwise(boxes):
        assert left["x"] + left["width"] <= right["x"]


def test_the_page_asks_nothing_of_other_machines(tab: Tab):
    tab.open(prompt=PROMPT).draw()
    assert not tab.foreign
    assert not tab.errors


def test_words_that_the_model_does_not_know_are_named(tab: Tab):
    tab.open()
    tab.page.fill("#prompt textarea", "a red dragon over a castle")
    tab.page.wait_for_selector(".words .unknown")
    assert "dragon, castle" in tab.page.inner_text(".words .unknown")


def test_a_link_carries_all_settings(tab: Tab, browser, served):
    tab.open(prompt=PROMPT, seed=123456789012345678, b1=1.25, s2=0.35, stop=0.5, sampler="plms")
    tab.page.click("#link-button")
    tab.page.wait_for_function(
        "document.querySelector('#link textarea, #link input')?.value.startsWith('http')"
    )
    other = Tab(browser, served.address)
    try:
        other.page.goto(tab.value("link"))
        other.page.wait_for_selector("#told .lines")
        for each in (tab, other):
            each.page.get_by_role("button", name="When, and how much of it").click()
            each.page.wait_for_selector("#stop-share input")
        assert float(other.value("stop-share")) == 0.5
        for name in ("prompt", "seed", "b1", "s2", "stop-share"):
            assert other.value(name) == tab.value(name)
        assert other.page.is_checked("#sampler input[value=plms]")
    finally:
        other.page.close()


def test_a_link_to_settings_that_mean_nothing_is_refused_in_a_sentence(tab: Tab):
    tab.open(prompt=PROMPT)
    tab.page.fill("#seed textarea, #seed input", "")
    tab.page.click("#link-button")
    tab.page.wait_for_selector("#told .fault")
    assert tab.page.inner_text("#told") == "The seed is '': give a whole number."
    tab.page.fill("#seed textarea, #seed input", "5")
    tab.page.click("#link-button")
    tab.page.wait_for_function("new URLSearchParams(location.search).get('seed') === '5'")
    assert not tab.page.is_visible("#told")


def test_what_a_visitor_writes_is_never_run(tab: Tab):
    nasty = "<img src=x onerror=\"document.title='run'\"> ${document.title='run'} {{value}} `"
    tab.open(prompt=nasty).draw()
    assert nasty in tab.page.inner_text(".stage .caption")
    assert tab.page.title() != "run"


def test_everything_is_reached_by_the_keyboard(tab: Tab):
    tab.open(prompt=PROMPT).draw()
    wanted = {"prompt", "draw", "b1", "seed", "steps", "dropped", "link-button"}
    reached: set[str] = set()
    tab.page.focus("#light-or-dark")
    for _ in range(80):
        tab.page.keyboard.press("Tab")
        reached |= {
            *tab.page.evaluate(
                "(() => { const ids = []; let e = document.activeElement;"
                "while (e) { ids.push(e.id); e = e.parentElement; } return ids; })()"
            )
        }
    assert wanted <= reached


def test_light_and_dark_are_kept(tab: Tab):
    tab.open()
    before = tab.page.evaluate("document.body.classList.contains('dark')")
    tab.page.click("#light-or-dark")
    tab.open()
    assert tab.page.evaluate("document.body.classList.contains('dark')") != before
    tab.page.click("#light-or-dark")


def test_a_picture_may_be_dropped_anywhere(tab: Tab, txt2img):
    [path] = txt2img("--prompt", "a black heart", "--seed", 1234).pictures()
    tab.open()
    tab.page.evaluate(
        """bytes => {
          const file = new File([new Uint8Array(bytes)], "a.png", { type: "image/png" });
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(file);
          const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
          document.querySelector(".stage").dispatchEvent(drop);
        }""",
        [*path.read_bytes()],
    )
    tab.page.wait_for_function("document.querySelector('#seed textarea, #seed input').value === '1234'")
    assert tab.value("prompt") == "a black heart"


def test_a_file_that_is_no_picture_is_told_of(tab: Tab, tmp_path: Path, served: Served):
    (tmp_path / "no.png").write_bytes(b"hello")
    tab.open(seed=5)
    tab.page.set_input_files("#dropped input[type=file]", tmp_path / "no.png")
    tab.page.wait_for_selector("#told .fault")
    assert tab.page.inner_text("#told") == "This file is not a PNG picture."
    assert tab.value("seed") == "5"
    assert not [*served.studio.folder.rglob("no.png")], "what was uploaded is not kept"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)], ids=["desk", "phone"])
@pytest.mark.parametrize("scrolled", [0, 1500])
def test_what_is_said_of_a_dropped_picture_is_in_sight(
    tab: Tab, tmp_path: Path, width: int, height: int, scrolled: int
):
    (tmp_path / "no.png").write_bytes(b"hello")
    tab.page.set_viewport_size({"width": width, "height": height})
    tab.open()
    tab.page.evaluate(f"scrollTo(0, {scrolled})")
    tab.page.set_input_files("#dropped input[type=file]", tmp_path / "no.png")
    tab.page.wait_for_selector("#told .fault")
    tab.page.wait_for_function(
        "(({top, bottom}) => 0 <= top && bottom <= innerHeight)"
        "(document.querySelector('#told').getBoundingClientRect())"
    )


def test_settings_beyond_the_sliders_can_be_drawn(tab: Tab, tmp_path: Path):
    tab.open(prompt=PROMPT, b1=2.75, scale=25, threshold=11).draw()
    assert float(tab.value("b1")) == 2.75
    assert "b1=2.75" in Image.open(tab.download("freeu", tmp_path)).info["parameters"]
