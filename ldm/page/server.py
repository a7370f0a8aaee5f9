"""The page as a server: what it serves, to whom, and what it keeps to itself."""

import os
import socket
from argparse import Namespace
from dataclasses import fields
from typing import Any

import gradio as gr
from omegaconf import DictConfig

from ldm.errors import InputError, warn
from ldm.generate import Sampling
from ldm.page import layout, theme
from ldm.page.api import Api
from ldm.page.engine import Engine
from ldm.page.settings import Limits
from ldm.page.studio import Studio
from ldm.page.visit import Visit
from ldm.txt2img.caveats import caveats
from ldm.txt2img.request import usual_settings

MANY = 1000  # visitors whose events are followed at once; how many may wait is the engine's to say


def make_page(studio: Studio, engine: Engine) -> gr.Blocks:
    """The page on a model. Nothing on it calls out: no telemetry, no fonts or scripts from elsewhere.

    gradio reads files from a folder of its own alone, and each component notes that folder when it is made.
    Given the output folder, it serves the pictures without copies, uploads land there too, and nothing else
    can be read.
    """
    folder = str(studio.folder.resolve())
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_EXAMPLES_CACHE"] = folder
    with gr.Blocks(title="FreeU, side by side", analytics_enabled=False) as page:
        parts = layout.build(studio, engine)
        Visit(studio, engine, parts).wire(page)
        Api(studio, engine).wire()
    return page.queue(default_concurrency_limit=None, max_size=None)


def launch(page: gr.Blocks, studio: Studio, host: str, port: int | None, share: bool, **more: Any) -> str:
    """Serves the page and returns its address; the serving thread goes on."""
    _, local, public = page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        footer_links=["api", "settings"],
        max_threads=MANY,
        max_file_size=studio.limits.upload << 20,
        allowed_paths=[],
        theme=theme.theme(),
        css_paths=theme.STYLESHEET,
        js=theme.SCRIPT.read_text(encoding="utf-8"),
        **more,
    )
    return public or local.replace("[::]", "[::1]")  # :: stands for all addresses and is none itself


def read_limits(arguments: Namespace, config: DictConfig) -> Limits:
    """The limits that a command line asks for. Raises InputError for one below 1."""
    usual = usual_settings(config)
    sides = [usual.get(name, Sampling.height) for name in ("height", "width")]
    asked = {field.name: getattr(arguments, f"max_{field.name}") for field in fields(Limits)}
    if asked["side"] is None:
        asked["side"] = max(256, 2 * max(sides))
    for name, value in asked.items():
        if value < 1:
            raise InputError(f"--max-{name} is {value}: give 1 or more.")
    return Limits(**asked)


def check_address(host: str, port: int | None) -> None:
    """Raises InputError where nothing can be served there; gradio would wait for ever."""
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"--port is {port}: give 1 to 65535.")
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as fault:
        where = host if port is None else f"{host}, port {port},"
        raise InputError(f"Nothing can be served at {where} now: {fault.strerror or fault}.") from None


def serve(arguments: Namespace, config: DictConfig) -> None:
    """Loads the model and serves the page until it is interrupted. Raises InputError."""
    limits = read_limits(arguments, config)
    check_address(arguments.host, arguments.port)
    studio = Studio(arguments, config, limits)
    for line in caveats(studio.model, [], []):
        warn(line)
    engine = Engine(limits.queue)
    page = make_page(studio, engine)
    address = launch(page, studio, arguments.host, arguments.port, arguments.share)
    print(f"The page is at {address}")
    if arguments.share:
        print("--share: this address is public. Whoever has it can draw on this machine.")
    print("Ctrl-C ends it.", flush=True)
    try:
        engine.run()
    finally:
        engine.close()
        page.close()
