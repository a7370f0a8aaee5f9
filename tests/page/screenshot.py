"""README's picture of the page: python -m tests.page.screenshot checkpoints/page.png"""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from ldm.folders import ROOT
from tests.browser import CHROMIUM, FLAGS
from tests.page.conftest import Tab

PROMPT = "a large yellow star left of a large red striped heart on a dotted blue background"


def main(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--outdir", folder]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as served:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            try:
                address = served.stdout.readline().split()[-1]
                context = browser.new_context(viewport={"width": 1280, "height": 960}, color_scheme="light")
                context.set_default_timeout(300_000)
                tab = Tab(context, address)
                tab.page.goto(address)
                tab.page.fill("#prompt textarea", PROMPT)
                tab.draw()
                tab.page.get_by_role("tab", name="Explain").click()
                tab.page.mouse.move(0, 0)
                tab.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                tab.page.wait_for_timeout(800)
                shot = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
            finally:
                browser.close()
                served.terminate()
    shot.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
