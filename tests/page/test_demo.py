"""scripts/demo.py: its arguments, and what it says where something is missing."""

import os
import runpy
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gradio_client import Client

from ldm.folders import ROOT
from tests.page.conftest import Served

DEMO = [sys.executable, str(ROOT / "scripts" / "demo.py")]


def run(*argv: object, code: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code] if code else [*DEMO, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_help_says_that_share_is_public():
    done = run("--help")
    assert done.returncode == 0
    assert "127.0.0.1" in done.stdout and "whoever has it" in " ".join(done.stdout.split())


@pytest.fixture
def demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the script's main in this process: the exit code, and what it said of its faults."""
    script = runpy.run_path(str(ROOT / "scripts" / "demo.py"))

    def main(*argv: object) -> tuple[int, str]:
        code = script["main"]([str(word) for word in ("--outdir", tmp_path, *argv)])
        return code, capsys.readouterr().err

    return main


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--max-steps", 0], "--max-steps is 0: give 1 or more."),
        (["--max-side", 31], "--max-side is 31: give 32 or more"),
        (["--config", "nowhere.yaml"], "There is no config 'nowhere.yaml'"),
        (["--ckpt", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--port", 70000], "--port is 70000: give 1 to 65535."),
        (["--host", "256.1.1.1"], "256.1.1.1"),
        (["sampling.steps=0"], "0 sampling steps asked for, but this model takes 1 to 1000"),
        (["model.params.unet_config.target=torch.nn.Identity"], ""),
    ],
)
def test_bad_input_is_one_or_two_lines_and_exit_code_2(demo, argv: list, said: str):
    code, told = demo(*argv)
    assert code == 2
    assert said in told and len(told.strip().splitlines()) <= 2


def test_a_port_in_use_is_said(demo, served: Served):
    port = served.address.rstrip("/").rpartition(":")[2]
    code, told = demo("--port", port)
    assert code == 2
    assert f"port {port}" in told and len(told.strip().splitlines()) == 1


def test_without_gradio_the_remedy_is_said():
    code = (
        "import sys, runpy; sys.modules['gradio'] = None; sys.argv = ['demo.py'];"
        "runpy.run_path('scripts/demo.py', run_name='__main__')"
    )
    done = run(code=code)
    assert done.returncode == 2
    assert done.stderr.strip() == 'error: The page needs gradio: pip install -e ".[demo]".'


def test_inference_does_not_import_gradio():
    done = run(code="import sys, ldm.txt2img.run; print('gradio' in sys.modules)")
    assert done.stdout.strip() == "False"


# Runs the script, and tells of every name and address of another machine that it asks for.
WATCHED = """
import runpy, socket, sys
def watch(owner, name):
    real = getattr(owner, name)
    def told(*args, **kwargs):
        words = str(args)
        if not any(own in words for own in ("127.0.0.1", "localhost", "None, ", "0.0.0.0")):
            print("asked for", words, file=sys.stderr)
        return real(*args, **kwargs)
    setattr(owner, name, told)
watch(socket, "getaddrinfo"); watch(socket, "create_connection")
sys.argv = ["demo.py", *sys.argv[1:]]
runpy.run_path("scripts/demo.py", run_name="__main__")
"""


@contextmanager
def serving(code: str, *argv: object) -> Iterator[subprocess.Popen]:
    """A page in a process of its own, whose code runs the script."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", code, *map(str, argv)]
    with subprocess.Popen(command, **pipes, text=True, cwd=ROOT, env=environment) as served:
        try:
            yield served
        finally:
            served.kill()


def stop(served: subprocess.Popen) -> str:
    """Asks a page to end, and returns what it said of faults."""
    served.send_signal(signal.SIGTERM)
    _, told = served.communicate(timeout=30)
    assert served.returncode == 128 + signal.SIGTERM
    return told.strip()


def test_the_page_is_served_until_it_is_asked_to_end_and_calls_nobody(tmp_path: Path):
    with serving(WATCHED, "--outdir", tmp_path, "--max-queue", 3) as served:
        line = served.stdout.readline()
        assert line.startswith("The page is at http://127.0.0.1:")
        address = line.split()[-1]
        assert b"FreeU, side by side" in urllib.request.urlopen(address, timeout=30).read()
        time.sleep(1)  # what a thread asks for in the background is asked for by then
        assert stop(served) == "stopped; the pictures are kept"


# Runs the script, and tells in which thread it draws.
THREADS = """
import runpy, sys, threading
from ldm.page import studio
draw = studio.draw
def told(*args):
    print("drawn in", threading.current_thread().name, flush=True)
    return draw(*args)
studio.draw = told
sys.argv = ["demo.py", *sys.argv[1:]]
runpy.run_path("scripts/demo.py", run_name="__main__")
"""


def test_the_page_draws_in_the_thread_that_loaded_the_model_and_is_stopped_there(tmp_path: Path):
    with serving(THREADS, "--outdir", tmp_path) as served:
        address = served.stdout.readline().split()[-1]
        assert served.stdout.readline() == "Ctrl-C ends it.\n"
        client = Client(address, verbose=False)
        client.predict("a red star", steps=2, height=32, width=32, api_name="/generate")
        assert served.stdout.readline() == "drawn in MainThread\n"
        client.submit("a red star", steps=150, height=256, width=256, api_name="/generate")
        assert served.stdout.readline() == "drawn in MainThread\n"
        assert stop(served) == "stopped; the pictures are kept"
