"""What the page's events tell the browser, without one."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from ldm.page import layout
from ldm.page.engine import Engine
from ldm.page.studio import Studio
from ldm.page.visit import Visit
from tests.page.conftest import in_a_loop


@pytest.mark.parametrize("kind", ["draw", "look", "grid"])
def test_all_news_of_work_say_that_it_can_be_stopped(studio: Studio, kind: str):
    engine = Engine(most=5)
    with gr.Blocks():
        parts = layout.build(studio, engine)
    visitor: Any = SimpleNamespace(session_hash="visitor")
    values = replace(studio.defaults(), steps=3, height=32, width=32).values()

    async def told() -> list[dict[Any, Any]]:
        news = [it async for it in Visit(studio, engine, parts).draw([], 0, visitor, *values)]
        [pairs] = [it[parts.pairs] for it in news if parts.pairs in it]
        if kind == "look":
            news = [it async for it in parts.inside.look(pairs, 0, 1, 0, visitor)]
        if kind == "grid":
            axes = ("b1", "1, 1.2", "nothing", "")
            news = [it async for it in parts.grid.draw(*axes, visitor, *values)]
        return news

    try:
        *under_way, _, last = in_a_loop(told())
    finally:
        engine.close()
    stop = {"draw": parts.stop, "look": parts.inside.halt, "grid": parts.grid.halt}[kind]
    assert len(under_way) >= 2
    assert all(news[stop]["interactive"] for news in under_way)
    assert last[stop]["interactive"] is False
