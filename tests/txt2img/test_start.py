"""scripts/txt2img.py: what a start costs, and what it says."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from ldm.config.freeu import FREE_UNET
from ldm.config.reading import load_config
from ldm.folders import ROOT

SCRIPT = ROOT / "scripts" / "txt2img.py"
FLAGS = """
    --prompt --negative-prompt --from-file --from-image --outdir --steps --ddim_steps --plms --dpm --sampler
    --dpm_solver --ddim_eta --scale --H --height --W --width --C --f --bf16 --n_samples --n_iter
    --repeat --n_rows --seed --fixed_code
    --skip_grid --skip_save --resume --precision --device --config --ckpt --download
    --b1 --b2 --s1 --s2 --freeu-version --no-freeu
    --compare --print-config key=value
"""
SMALL = ["--H", 32, "--W", 32, "--steps", 2, "--device", "cpu"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
Run = Callable[..., "Outcome"]  # noqa: F821 (see conftest)


def python(*argv: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, argv)], capture_output=True, text=True, env=ONE_THREAD, **options
    )


def test_help_answers_within_a_second_from_anywhere(tmp_path: Path) -> None:
    took = []
    for _ in range(3):
        start = time.perf_counter()
        answer = python(SCRIPT, "--help", cwd=tmp_path)
        took.append(time.perf_counter() - start)
    assert min(took) < 1
    assert answer.returncode == 0 and not answer.stderr
    for flag in FLAGS.split():
        assert flag in answer.stdout


def test_what_needs_no_model_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = [{script!r}, {flag!r}]\n"
        "try: runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    for flag in ("--help", "--print-config"):
        answer = python("-c", code.format(script=str(SCRIPT), flag=flag), cwd=tmp_path)
        assert (answer.returncode, answer.stderr) == (0, "")


def test_importing_the_package_costs_nothing() -> None:
    code = (
        "import sys, time; start = time.process_time(); import ldm\n"
        "assert time.process_time() - start < 0.05 and 'torch' not in sys.modules\n"
        "assert callable(ldm.load_model)"
    )
    answer = python("-c", code)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_run_from_the_root_is_quiet_and_imports_nothing_it_does_not_need(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    argv = ["scripts/txt2img.py", "--ckpt", tiny_checkpoint, "--outdir", tmp_path, *SMALL]
    code = (
        "import runpy, sys\n"
        f"sys.argv = {[str(word) for word in argv]}\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "for name in 'pytorch_lightning diffusers transformers matplotlib gradio open_clip'.split():\n"
        "    assert name not in sys.modules, name"
    )
    answer = python("-c", code, cwd=ROOT)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.splitlines()[-1] == f"1 picture in {tmp_path / 'samples' / '00000.png'}"
    assert [path.name for path in tmp_path.glob("*/*")] == ["00000.png"]


def test_on_a_terminal_bars_show_steps_and_pictures(tmp_path: Path, tiny_checkpoint: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    argv = [SCRIPT, "--ckpt", tiny_checkpoint, "--outdir", "out", *SMALL, "--steps", 5, "--n_iter", 2]
    process = subprocess.Popen(
        [sys.executable, *map(str, argv)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=ONE_THREAD,
    )
    os.close(theirs)
    shown = b""
    while True:
        # A terminal whose last writer is gone answers with an error on Linux, with nothing elsewhere.
        try:
            part = os.read(ours, 4096)
        except OSError:
            part = b""
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    assert b"0/5" in shown and b"2/2" in shown and b"picture" in shown
    assert sorted(path.name for path in (tmp_path / "out" / "samples").iterdir()) == [
        "00000.png",
        "00001.png",
    ]


def test_print_config_resolves_a_preset_that_needs_no_checkpoint(txt2img: Run) -> None:
    outcome = txt2img("--config", "freeu_sd21.yaml", "--print-config", defaults=[])
    assert (outcome.code, outcome.err) == (0, "") and not outcome.folder.exists()
    config = OmegaConf.create(outcome.out)
    assert "base" not in config and config.model.params.parameterization == "v"
    unet = config.model.params.unet_config
    assert unet.target == FREE_UNET
    assert [unet.params[key] for key in ("b1", "b2", "s1", "s2")] == [1.1, 1.2, 0.9, 0.2]
    assert (
        unet.params.context_dim == 1024
        and config.model.params.cond_stage_config.params.layer == "penultimate"
    )
    assert config == load_config("freeu_sd21.yaml")


def test_print_config_shows_what_flags_and_overrides_change(txt2img: Run) -> None:
    def printed(*argv: object) -> OmegaConf:
        return OmegaConf.create(txt2img("--print-config", *argv, defaults=[]).out)

    swapped = printed("--config", "tiny.yaml", "--b1", 1.3, "--freeu-version", 2, "model.params.channels=5")
    unet = swapped.model.params.unet_config
    assert unet.target == FREE_UNET and swapped.model.params.channels == 5
    assert [unet.params[key] for key in ("b1", "b2", "s1", "s2", "version")] == [1.3, 1, 1, 1, 2]
    assert printed("--no-freeu", "--b1", 1.3) == load_config("tiny.yaml")
