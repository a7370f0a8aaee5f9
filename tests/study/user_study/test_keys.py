"""The user study's page under a voter's keys, in a real browser."""

import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from ldm.study.user_study import write_study
from tests.browser import CHROMIUM, FLAGS
from tests.study.user_study.studies import SECRET_SEED, SETTINGS, some_pairs

# Presses keys as a keyboard does, a name ending in + for one that is held, and tells the votes in the title.
PRESS = """<script>
document.querySelector("#begin").click();
for (const name of KEYS) {
  const key = name.replace("+", "");
  for (const repeat of key === name ? [false] : [false, true, true]) {
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, repeat, bubbles: true }));
  }
}
document.title = JSON.stringify(state.votes);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium")
@pytest.mark.parametrize(
    ("keys", "votes"),
    [
        ("ArrowLeft ArrowRight", [{"text": "left", "quality": "right"}, {}]),
        ("ArrowLeft+", [{"text": "left"}, {}]),
        ("ArrowLeft Enter ArrowRight", [{"text": "left", "quality": "right"}, {}]),
        (
            "ArrowLeft ArrowLeft ArrowUp ArrowRight Enter+ ArrowRight Backspace+ ArrowDown ArrowRight",
            [{"text": "right", "quality": "right"}, {"text": "right"}],
        ),
    ],
)
def test_a_key_is_one_answer_however_long_it_is_held(
    keys: str, votes: list[dict[str, str]], tmp_path: Path
) -> None:
    page = write_study(tmp_path, some_pairs(2), SECRET_SEED, SETTINGS)
    pressed = tmp_path / "pressed.html"
    pressed.write_text(
        page.read_text().replace("</body>", PRESS.replace("KEYS", json.dumps(keys.split())) + "</body>")
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, profile, "--dump-dom", pressed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr
    assert json.loads(html.unescape(title[1])) == votes
