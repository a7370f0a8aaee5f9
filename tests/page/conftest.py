"""One page for all tests: the embedded model behind it, and a real browser before it."""

import asyncio
import os
import tempfile
import threading
from argparse import Namespace
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from ldm.config.reading import load_config
from ldm.page.engine import Engine
from ldm.page.server import launch, make_page
from ldm.page.settings import Limits
from ldm.page.studio import Studio
from tests.browser import CHROMIUM, FLAGS

PROMPT = "a large red circle left of a small blue star on a green background"
PATIENCE = 60_000  # milliseconds; two busy cores may take long over little


def in_a_loop(work: Coroutine) -> Any:
    """Runs a coroutine in a thread of its own, since a browser's driver may hold this one's loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, asyncio.wait_for(work, 30)).result()


@dataclass(frozen=True)
class Served:
    """A page that runs: its address, and what is behind it."""

    address: str
    studio: Studio
    engine: Engine


def demo_arguments(folder: Path, ckpt: Path) -> Namespace:
    return Namespace(
        config="freeu_tiny.yaml",
        ckpt=str(ckpt),
        device="cpu",
        precision="full",
        download=False,
        trust_config=False,
        overrides=[],
        outdir=folder,
    )


@pytest.fixture(scope="session")
def studio(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("page")
    arguments = demo_arguments(folder, tiny_checkpoint)
    return Studio(arguments, load_config("freeu_tiny.yaml"), Limits(side=128, steps=200, upload=1))


@contextmanager
def running(most: int) -> Iterator[Engine]:
    """An engine that a thread of its own runs."""
    engine = Engine(most)
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    yield engine
    engine.close()
    thread.join()


@pytest.fixture(scope="session")
def served(studio: Studio) -> Iterator[Served]:
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE")}
    with running(studio.limits.queue) as engine:
        page = make_page(studio, engine)
        address = launch(page, studio, "127.0.0.1", None, share=False)
        yield Served(address, studio, engine)
        page.close()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def engine() -> Iterator[Engine]:
    with running(most=5) as engine:
        yield engine


@pytest.fixture(scope="session")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as profile:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS, viewport={"width": 1280, "height": 900}
        )
        context.set_default_timeout(PATIENCE)
        yield context
        context.close()


class Tab:
    """A visitor's tab. It notes what the page asks of other machines, and what goes wrong in it."""

    def __init__(self, browser, address: str):
        self.address = address
        self.page = browser.new_page()
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(request.url)

    def open(self, **settings: object) -> "Tab":
        """The page with these settings, small ones where they are not named."""
        query = {"H": 32, "W": 32, "steps": 2} | settings
        self.page.goto(f"{self.address}?{urlencode(query)}")
        self.page.wait_for_selector("#told .lines")
        return self

    def wait_for(self, state: str) -> None:
        self.page.wait_for_selector(f'.stage[data-state="{state}"]')

    def draw(self, ask: Callable[[], None] | None = None) -> "Tab":
        """Presses Draw, or does what else asks for pictures, and waits for a new pair.

        The states before it may pass too fast to be seen.
        """
        picture = "document.querySelector('.stage[data-state=done] .freeu img')?.getAttribute('src')"
        old = self.page.evaluate(f"{picture} ?? null")
        if ask is None:
            self.page.click("#draw")
        else:
            ask()
        self.page.wait_for_function(f"old => ![null, undefined, old].includes({picture})", arg=old)
        return self

    def download(self, side: str, folder: Path) -> Path:
        """The PNG behind a picture's link."""
        with self.page.expect_download() as waited:
            self.page.click(f".stage .{side} figcaption a")
        path = folder / waited.value.suggested_filename
        waited.value.save_as(path)
        return path

    def pixels(self, side: str, folder: Path) -> np.ndarray:
        return np.asarray(Image.open(self.download(side, folder)).convert("RGB"))

    def value(self, name: str) -> str:
        return self.page.input_value(f"#{name} input, #{name} textarea")

    @property
    def status(self) -> str:
        return self.page.inner_text(".stage .status")


@pytest.fixture
def tab(browser, served: Served) -> Iterator[Tab]:
    tab = Tab(browser, served.address)
    yield tab
    tab.page.close()
