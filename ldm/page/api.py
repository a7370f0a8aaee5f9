"""The endpoint for programs: `/generate`, for gradio's own client."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from ldm.errors import InputError
from ldm.page.engine import Engine, Waiting
from ldm.page.pair import Progress
from ldm.page.settings import FIELDS, Settings
from ldm.page.studio import Pair, Studio
from ldm.page.words import sentence


class Api:
    """What programs may ask of the page."""

    def __init__(self, studio: Studio, engine: Engine):
        self.studio, self.engine = studio, engine

    def wire(self) -> None:
        """Adds the endpoint, inside a `gr.Blocks`."""
        gr.api(self.generate, api_name="generate", concurrency_limit=None)

    async def generate(  # type: ignore[misc]  # gradio wants to be told what each item is
        self,
        request: gr.Request,
        prompt: str,
        negative_prompt: str | None = None,
        seed: int | None = None,
        steps: int | None = None,
        scale: float | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        height: int | None = None,
        width: int | None = None,
        b1: float | None = None,
        b2: float | None = None,
        s1: float | None = None,
        s2: float | None = None,
        version: int | None = None,
        strength: float | None = None,
        start: float | None = None,
        stop: float | None = None,
        ramp: float | None = None,
        threshold: int | None = None,
        match: str | None = None,
        channels: str | float | None = None,
    ) -> tuple[FileData, FileData, dict[str, Any]]:
        """Draws a pair, plain and with FreeU, from the same noise; what is left out is as the page begins.

        Gives two PNGs, which carry their settings, and these settings. Before that come the place in the
        queue, {"ahead": 3}, and how far it is, {"steps": 4, "total": 50}.
        """
        given = {name: value for name, value in locals().items() if name in FIELDS and value is not None}
        try:
            settings = Settings.read(asdict(self.studio.defaults()) | given)
            self.studio.check(settings)
            work = partial(self.studio.pairs, settings)
            async for news in self.engine.follow((str(request.session_hash), "generate"), work):
                if isinstance(news, Waiting):
                    yield None, None, {"ahead": news.ahead}
                    continue
                for item in news:
                    if isinstance(item, Pair):
                        used = {**asdict(settings), "notes": self.studio.notes(settings)}
                        yield as_file(item.files["plain"]), as_file(item.files["freeu"]), used
                    elif isinstance(item, Progress):
                        yield None, None, {"steps": item.steps, "total": item.total}
        except Exception as fault:
            raise gr.Error(sentence(fault), print_exception=False) from (
                None if isinstance(fault, InputError) else fault
            )


def as_file(path: Path) -> Any:
    return FileData(path=str(path), orig_name=path.name).model_dump()
