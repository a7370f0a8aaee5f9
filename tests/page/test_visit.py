"""What the page's events tell the browser, without one."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from ldm.errors import InputError
from ldm.page import layout
from ldm.page.engine import Engine
from ldm.page.studio import Studio
from ldm.page.visit import Visit
from tests.page.conftest import in_a_loop

VISITOR: Any = SimpleNamespace(session_hash="visitor")


@pytest.fixture
def parts(studio: Studio, engine: Engine) -> layout.Parts:
    with gr.Blocks():
        return layout.build(studio, engine)


@pytest.mark.parametrize("kind", ["draw", "look", "grid"])
def test_all_news_of_work_say_that_it_can_be_stopped(
    studio: Studio, engine: Engine, parts: layout.Parts, kind: str
):
    values = replace(studio.defaults(), steps=3, height=32, width=32).values()

    async def told() -> list[dict[Any, Any]]:
        news = [it async for it in Visit(studio, engine, parts).draw([], 0, VISITOR, *values)]
        [pairs] = [it[parts.pairs] for it in news if parts.pairs in it]
        if kind == "look":
            news = [it async for it in parts.inside.look(pairs, 0, 1, 0, VISITOR)]
        if kind == "grid":
            axes = ("b1", "1, 1.2", "nothing", "")
            news = [it async for it in parts.grid.draw(*axes, VISITOR, *values)]
        return news

    *under_way, before, last = in_a_loop(told())
    stop = {"draw": parts.stop, "look": parts.inside.halt, "grid": parts.grid.halt}[kind]
    assert len(under_way) >= 2
    assert all(news[stop]["interactive"] for news in under_way)
    assert before.get(stop, under_way[-1][stop])["interactive"]  # what is over may say nothing of it
    assert last[stop]["interactive"] is False


def test_who_stops_before_anything_is_drawn_has_the_pair_before_him_as_it_was(
    studio: Studio, engine: Engine, parts: layout.Parts
):
    small = replace(studio.defaults(), steps=2, height=32, width=32, seed=8)
    *_, pair = studio.pairs(small, threading.Event())
    over = threading.Event()

    def others(_: threading.Event) -> Iterator[int]:
        over.wait(20)
        yield 1

    async def told() -> str:
        first = engine.follow(("another", "draw"), others)
        await anext(first)
        wide = replace(small, width=128).values()
        async for news in Visit(studio, engine, parts).draw([pair], 0, VISITOR, *wide):
            if 'data-state="waiting"' in news[parts.stage]:
                engine.stop(("visitor", "draw"))
        over.set()
        return news[parts.stage]

    html = in_a_loop(told())
    assert "Stopped before anything was drawn." in html
    assert "--ratio: 32 / 32" in html and 'download="plain-8.png"' in html


def test_a_fault_leaves_the_pair_before_it_as_it_was(
    studio: Studio, engine: Engine, parts: layout.Parts, monkeypatch: pytest.MonkeyPatch
):
    small = replace(studio.defaults(), steps=2, height=32, width=32, seed=8)
    *_, pair = studio.pairs(small, threading.Event())

    def fails(settings: object, stop: threading.Event) -> Iterator[object]:
        raise InputError("There is no memory.")
        yield

    async def told() -> str:
        monkeypatch.setattr(studio, "pairs", fails)
        wide = replace(small, width=128).values()
        [*_, last] = [it async for it in Visit(studio, engine, parts).draw([pair], 0, VISITOR, *wide)]
        return last[parts.stage]

    html = in_a_loop(told())
    assert "There is no memory." in html
    assert "--ratio: 32 / 32" in html and 'download="plain-8.png"' in html
