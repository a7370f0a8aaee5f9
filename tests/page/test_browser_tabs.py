"""The page in a real browser: its tabs, and several visitors at once."""

from tests.page.conftest import PROMPT, Served, Tab
from tests.waiting import wait_until


def test_a_picture_of_the_visit_can_be_shown_again_and_taken_up(tab: Tab):
    tab.open(prompt=PROMPT, seed=5).draw()
    tab.page.fill("#seed textarea, #seed input", "6")
    tab.draw()
    tab.page.wait_for_function("document.querySelectorAll('#history .thumbnail-item').length === 4")
    tab.page.locator("#history .thumbnail-item").last.click()
    tab.page.wait_for_function("document.querySelector('.stage .caption').innerText.includes('seed 5')")
    tab.page.click("#take")
    tab.page.wait_for_function("document.querySelector('#seed textarea, #seed input').value === '5'")


def test_a_fault_leaves_the_chosen_pair_on_the_stage(tab: Tab):
    tab.open(prompt=PROMPT, seed=5).draw()
    tab.page.fill("#seed textarea, #seed input", "6")
    tab.draw()
    tab.page.locator("#history .thumbnail-item").nth(3).click()
    tab.page.wait_for_function("document.querySelector('.stage .caption').innerText.includes('seed 5')")
    tab.page.fill("#seed textarea, #seed input", "six")
    tab.page.click("#draw")
    tab.wait_for("error")
    assert "seed 5" in tab.page.inner_text(".stage .caption")
    tab.page.click("#take")
    tab.page.wait_for_function("document.querySelector('#seed textarea, #seed input').value === '5'")


def test_pairs_of_this_visit_are_told_apart_by_their_factors(tab: Tab):
    for b1 in ("1.25", "1.5"):
        tab.open(prompt=PROMPT, seed=5, b1=b1, b2=1.2, s1=0.9, s2=0.6).draw()
        assert f"(seed 5, FreeU {b1} 1.2 0.9 0.6)" in tab.page.inner_text(".stage .caption")
        tab.page.wait_for_selector("#history .thumbnail-item")
        assert tab.page.locator("#history .caption-label").all_inner_texts() == [
            "Plain · 5", f"FreeU · {b1} 1.2 0.9 0.6"
        ]  # fmt: skip


def test_who_closes_the_tab_frees_his_place(browser, served: Served):
    tab = Tab(browser, served.address)
    tab.open(prompt=PROMPT, steps=200, H=128, W=128)
    tab.page.click("#draw")
    tab.page.wait_for_function("/Step [1-9]/.test(document.querySelector('.stage .status').innerText)")
    assert len(served.engine) == 1
    tab.page.close()
    wait_until(lambda: not len(served.engine), seconds=30)


def test_a_visitor_who_waits_sees_his_place(tab: Tab, browser, served: Served):
    first = Tab(browser, served.address)
    try:
        first.open(prompt=PROMPT, steps=200, H=128, W=128)
        first.page.click("#draw")
        first.wait_for("running")
        tab.open(prompt=PROMPT)
        tab.page.click("#draw")
        tab.wait_for("waiting")
        assert tab.status == "You are number 2 in line: one other's work is done before yours."
        first.page.click("#stop")
        first.wait_for("stopped")
        tab.wait_for("done")
    finally:
        first.page.close()


def test_a_pair_can_be_looked_into(tab: Tab):
    tab.open(prompt=PROMPT, steps=3, H=64, W=64).draw()
    tab.page.get_by_role("tab", name="Look inside").click()
    tab.page.click("#look")
    tab.page.wait_for_selector(".inside .plot svg")
    assert tab.page.locator(".inside .maps img").count() == 4
    tab.page.fill("#block input[type=number]", "7")
    tab.page.keyboard.press("Tab")
    tab.page.wait_for_function(
        "document.querySelector('.inside').innerText.includes('Decoder block 7 takes')"
    )
    assert not tab.errors


def test_a_grid_fills_cell_by_cell_and_can_be_stopped(tab: Tab):
    tab.open(prompt=PROMPT, steps=40, H=64, W=64)
    tab.page.get_by_role("tab", name="Grid").click()
    tab.page.wait_for_timeout(500)
    tab.page.fill("#across-values textarea, #across-values input", "1, 1.2, 1.4, 1.6")
    tab.page.click("#draw-grid")
    tab.page.wait_for_selector(".grid .cell img")
    assert tab.page.locator(".grid .cell").count() == 12
    tab.page.click("#stop-grid")
    tab.page.wait_for_function("document.querySelector('#grid').innerText.includes('are not drawn')")
    assert 1 <= tab.page.locator(".grid .cell img").count() < 12


def test_the_explanation_follows_the_controls(tab: Tab):
    tab.open(prompt=PROMPT)
    tab.page.get_by_role("tab", name="Explain").click()
    tab.page.wait_for_selector(".explain .blocks")
    tab.page.fill("#s2 input[type=number]", "0.3")
    tab.page.keyboard.press("Tab")
    tab.page.wait_for_function("document.querySelector('.explain').innerText.includes('s = 0.3')")
