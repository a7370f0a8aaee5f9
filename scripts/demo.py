"""A page to try FreeU on: beside the plain model, from the same noise.

    python scripts/demo.py
    python scripts/demo.py --config freeu_sd21.yaml --host 0.0.0.0 --port 8000

Needs gradio: pip install -e ".[demo]". Trailing arguments change the config, as in txt2img.
"""

import argparse
import sys
from pathlib import Path

from ldm.command_line import Help, add_model_flags
from ldm.errors import exit_code, needing, stop_when_asked
from ldm.memory import lasting


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--config CONFIG] [further options] [key=value ...]",
        description=__doc__,
        formatter_class=Help,
    )
    add = parser.add_argument_group("model").add_argument
    add_model_flags(add)
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")

    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help="address to serve: 127.0.0.1 this machine, 0.0.0.0 all")
    add("--port", type=int, help="(default: the first free one from 7860 up)")
    add("--share", action="store_true",
        help="a public address at gradio.live: whoever has it can draw on this machine")  # fmt: skip
    add("--outdir", type=Path, default=Path("outputs/demo"),
        help="pictures and uploads; visitors read no other file (default: %(default)s)")  # fmt: skip

    add = parser.add_argument_group("limits").add_argument
    add("--max-side", type=int, help="in pixels (default: twice the config's, at least 256)")
    add("--max-steps", type=int, default=150, help="(default: %(default)s)")
    add("--max-samples", type=int, default=4, help="pairs per click (default: %(default)s)")
    add("--max-cells", type=int, default=25, help="pictures of one grid (default: %(default)s)")
    add("--max-queue", type=int, default=100, help="waiting jobs (default: %(default)s)")
    add("--max-upload", type=int, default=16, help="in MiB (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    from ldm.config.reading import load_config
    from ldm.weights.cast_ahead import cast_ahead
    from ldm.weights.read_ahead import read_ahead

    config = load_config(arguments.config, arguments.overrides)
    checkpoint = arguments.ckpt or config.get("checkpoint")
    cast_ahead(checkpoint, arguments.device, arguments.precision)
    read_ahead(checkpoint)
    with lasting(), needing(["gradio"], 'The page needs gradio: pip install -e ".[demo]".'):
        from ldm.page.server import serve
    serve(arguments, config)


def main(argv: list[str]) -> int:
    return exit_code(lambda: run(make_parser().parse_intermixed_args(argv)), "stopped; the pictures are kept")


if __name__ == "__main__":
    stop_when_asked()
    sys.exit(main(sys.argv[1:]))
