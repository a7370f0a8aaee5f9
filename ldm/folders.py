"""Where the code lies, the configs, and the weights."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IS_CLONE = not (ROOT / "ldm" / "configs").is_dir()  # else an installation, which carries these within
CARRIED = ROOT if IS_CLONE else ROOT / "ldm"
CONFIGS, EMBEDDED = CARRIED / "configs", CARRIED / "checkpoints"
CHECKPOINTS = EMBEDDED if IS_CLONE else Path.cwd() / "checkpoints"  # those that people put there
