"""What every test of hostile files shares."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the scripts that some gadgets run."""
    touch = f"open({str(tmp_path / 'canary')!r}, 'w').close()"
    (tmp_path / "script.py").write_text(touch)
    (tmp_path / "hubconf.py").write_text(f"def entry():\n    {touch}")
    return tmp_path
