"""Programs as visitors: the endpoint, many at once, and what none of them may read."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from ldm.errors import InputError
from ldm.folders import ROOT
from ldm.image_io import save_png
from ldm.page.server import check_address, launch, make_page
from ldm.page.settings import Limits
from tests.page.conftest import Served
from tests.waiting import wait_until

SMALL = {"steps": 2, "height": 32, "width": 32}


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_clients_pictures_are_txt2imgs(served: Served, txt2img):
    client = Client(served.address, verbose=False)
    plain, freeu, told = client.predict("a red star", seed=3, b1=1.4, **SMALL, api_name="/generate")
    for path, flags in ((plain, ["--no-freeu"]), (freeu, ["--b1", 1.4])):
        [again] = txt2img("--prompt", "a red star", "--seed", 3, *flags).pictures()
        np.testing.assert_array_equal(pixels(path), pixels(str(again)))
    assert told["seed"] == 3 and told["b1"] == 1.4 and told["s2"] == served.studio.config_freeu.s2


@pytest.mark.slow
def test_readmes_five_lines_run(served: Served):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- the page's client -->\n```python\n(.*?)```", readme, re.S)[1]
    assert len(code.strip().splitlines()) == 5
    names: dict = {}
    exec(code.replace("http://127.0.0.1:7860", served.address), names)
    assert pixels(names["plain"]).shape == pixels(names["freeu"]).shape == (128, 128, 3)
    assert names["settings"]["b1"] == 1.15


@pytest.mark.parametrize("many", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_clients_at_once_get_their_own_right_pictures(many: int, served: Served):
    def visit(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
        # All ask for the page's description at once, for which a client alone waits 5 seconds.
        client = Client(served.address, verbose=False, httpx_kwargs={"timeout": 60})
        plain, freeu, told = client.predict(
            f"a {'red' if seed % 2 else 'blue'} star",
            seed=seed,
            b1=1 + seed / 100,
            **SMALL,
            api_name="/generate",
        )
        return pixels(plain), pixels(freeu), told["seed"]

    begun = time.monotonic()
    with ThreadPoolExecutor(many) as pool:
        together = [*pool.map(visit, range(many))]
    assert time.monotonic() - begun < 240
    assert [seed for *_, seed in together] == [*range(many)]
    assert len({plain.tobytes() for plain, *_ in together}) == many
    served.studio._plain.clear()
    for seed in range(0, many, 7):
        plain, freeu, _ = visit(seed)
        np.testing.assert_array_equal(plain, together[seed][0])
        np.testing.assert_array_equal(freeu, together[seed][1])


def test_a_fault_is_a_sentence_for_clients_too(served: Served):
    client = Client(served.address, verbose=False)
    with pytest.raises(AppError, match="The width of 33 pixels is no multiple of 32"):
        client.predict("a star", **(SMALL | {"width": 33}), api_name="/generate")
    with pytest.raises(AppError, match="this page takes 1 to 200"):
        client.predict("a star", **(SMALL | {"steps": 10**9}), api_name="/generate")
    assert client.predict("a star", **SMALL, api_name="/generate")[2]["prompt"] == "a star"


def test_a_client_that_names_a_prompt_alone_is_served_under_tight_limits(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(served.studio, "limits", Limits(side=32, steps=2))
    client = Client(served.address, verbose=False)
    plain, _, told = client.predict("a small blue star", api_name="/generate")
    assert pixels(plain).shape == (32, 32, 3) and told["steps"] == 2


def test_a_client_sees_its_place_and_leaving_frees_it(served: Served):
    """One draws for long, a second one waits and leaves, a third one is served."""
    slow = Client(served.address, verbose=False).submit(
        "a star", steps=200, height=128, width=128, api_name="/generate"
    )
    assert next(slow)[2]
    wait_until(lambda: "steps" in (slow.outputs() or [({}, {}, {})])[-1][2])
    waiting = Client(served.address, verbose=False).submit("a ring", **SMALL, api_name="/generate")
    assert next(waiting)[2] == {"ahead": 1}
    waiting.cancel()
    slow.cancel()
    plain, *_ = Client(served.address, verbose=False).predict("a cross", **SMALL, api_name="/generate")
    assert pixels(plain).shape == (32, 32, 3)
    wait_until(lambda: not len(served.engine), seconds=20)


def routes(path: str) -> list[str]:
    names = [path, quote(path, safe=""), f"/./{path}", f"{path}%00.png"]
    return [
        f"{prefix}{name}" for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/") for name in names
    ]


def outside(served: Served) -> list[str]:
    folder = served.studio.folder.resolve()
    secret = folder.parent / "secret.txt"
    secret.write_text("what nobody may read")
    up = "../" * 30
    return [
        str(secret),
        f"{folder}/../secret.txt",
        f"{folder}/x/../../secret.txt",
        f"{folder}/..%2fsecret.txt",
        "/etc/passwd",
        f"{up}etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        str(ROOT / "README.md"),
        "README.md",
        "setup.py",
        ".git/config",
        str(ROOT / "checkpoints" / "tiny.safetensors"),
        str(folder),
    ]


def test_no_file_outside_the_output_folder_can_be_read(served: Served):
    picture = served.studio.new_folder() / "a.png"
    save_png(picture, np.zeros((8, 8, 3), np.uint8))
    with httpx.Client(base_url=served.address) as http:
        for path in outside(served):
            for route in routes(path):
                answer = http.get(route)
                assert answer.status_code >= 400, route
                assert b"nobody may read" not in answer.content and b"root:" not in answer.content
        assert http.get(f"/gradio_api/file={quote(str(picture))}").status_code == 200


def test_no_link_in_the_output_folder_leads_out(served: Served):
    link = served.studio.folder / "link.txt"
    link.symlink_to("/etc/passwd")
    try:
        answer = httpx.get(f"{served.address}gradio_api/file={quote(str(link))}")
        assert answer.status_code >= 400 or b"root:" not in answer.content
    finally:
        link.unlink()


def test_a_client_cannot_have_the_servers_files_read_as_uploads(served: Served):
    """A file's path in the place of an upload's is refused, and so is one that is fetched from elsewhere."""
    config = httpx.get(f"{served.address}config").json()
    events = [d for d in config["dependencies"] if any(target[1] == "upload" for target in d["targets"])]
    assert events
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    controls = [values[part] for part in events[0]["inputs"][1:]]

    def ask(path: str) -> httpx.Response:
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, *controls]
        body = {"data": data, "fn_index": events[0]["id"], "session_hash": "thief"}
        return httpx.post(f"{served.address}gradio_api/run/predict", json=body)

    for path in ("/etc/passwd", str(ROOT / "checkpoints" / "tiny.png")):
        answer = ask(path)
        assert "root:" not in answer.text and "now have this picture" not in answer.text
        assert answer.status_code >= 400
    upload = {"files": ("no.png", b"hello", "image/png")}
    [path] = httpx.post(f"{served.address}gradio_api/upload", files=upload).json()
    assert "is not a PNG picture" in ask(path).text
    assert (ROOT / "checkpoints" / "tiny.png").is_file()


def test_uploads_that_are_too_large_are_refused(served: Served):
    upload = f"{served.address}gradio_api/upload"
    content = b"\x89PNG\r\n\x1a\n" + bytes(2 << 20)
    assert httpx.post(upload, files={"files": ("a.png", content, "image/png")}).status_code == 413
    assert httpx.post(upload, files={"files": ("a.png", content[:1000], "image/png")}).status_code == 200


@pytest.mark.parametrize("name", ["../../up.png", "/tmp/abs.png", "..\\..\\up.png", "a\0b.png"])
def test_an_upload_lands_in_the_output_folder_whatever_its_name(served: Served, name: str):
    answer = httpx.post(f"{served.address}gradio_api/upload", files={"files": (name, b"x" * 10, "image/png")})
    assert answer.status_code == 200
    [path] = answer.json()
    assert Path(path).resolve().is_relative_to(served.studio.folder.resolve())


@pytest.mark.parametrize("host", ["::1", "::"])
def test_the_page_is_served_at_an_ipv6_address_too(served: Served, host: str):
    try:
        check_address(host, None)
    except InputError:
        pytest.skip("there is no IPv6 here")
    page = make_page(served.studio, served.engine)
    address = launch(page, served.studio, host, None, share=False)
    try:
        assert address.startswith("http://[::1]:")
        assert b"FreeU, side by side" in httpx.get(address).content
    finally:
        page.close()


def test_the_page_listens_on_this_machine_alone(served: Served):
    assert httpx.get(served.address).status_code == 200
    with pytest.raises(httpx.ConnectError):  # on Linux all of 127 is this machine
        httpx.get(served.address.replace("127.0.0.1", "127.0.0.2"))
