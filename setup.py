import platform
import re
import sys
import zlib
from copy import copy
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# The tests pass on Python 3.10 with the oldest release that each bound admits, and on Python 3.13 with the
# newest of November 2026: torch 2.15, Lightning 2.6.6, open_clip 3.3, OmegaConf 2.4, diffusers 0.42.1.
EXTRAS = {
    "diffusers": ["diffusers>=0.35.2", "transformers>=5", "accelerate>=1.0", "peft>=0.18"],
    "demo": ["gradio>=6.31"],
    "fid": ["torch-fidelity>=0.4"],
    "figures": ["matplotlib>=3.8"],
    "search": ["optuna>=5", "matplotlib>=3.8"],
}


def with_headers(source: Path) -> bytes:
    """A file of C, and behind it the headers of this package that it includes."""
    own = source.read_bytes()
    names = re.findall(rb'^#include "(.+)"', own, re.MULTILINE)
    return own + b"".join(with_headers(source.parent / name.decode()) for name in names)


def extension(source: str, *flags: str, form: str = "") -> Extension:
    """A library of C functions, which ldm/freeu/native.py looks for; without a compiler the rest installs.

    Its name has the checksum of its source and its headers, so that none made of older ones is taken for it,
    and a form where one source is made into several libraries.
    """
    path = Path(source)
    checksum = f"{zlib.crc32(with_headers(Path(__file__).parent / path)):08x}"
    name = "_".join([path.stem, form, checksum] if form else [path.stem, checksum])
    return Extension(
        f"{'.'.join(path.parent.parts)}._{name}",
        [source],
        extra_compile_args=["-O3", "-fopenmp", *flags],
        extra_link_args=["-fopenmp", "-lm"],
        optional=True,
    )


class BuildApart(build_ext):
    """Builds each library in a folder of its own: several come of one source, and may do so at a time."""

    def build_extension(self, ext: Extension) -> None:
        apart = copy(self)
        apart.build_temp = str(Path(self.build_temp, ext.name))
        super(BuildApart, apart).build_extension(ext)


CARRIED = {"ldm.configs": "configs", "ldm.checkpoints": "checkpoints"}

EXTENSIONS = []
if sys.platform == "linux":
    EXTENSIONS.append(extension("ldm/freeu/filter.c"))
    EXTENSIONS.append(extension("ldm/modules/norm.c"))
    if platform.machine() == "x86_64":
        EXTENSIONS.append(extension("ldm/modules/tiles.c", "-march=sapphirerapids"))
        avx2, avx512 = ("-march=x86-64-v3", "-DLANES=8"), ("-march=x86-64-v4", "-DLANES=16")
        for source in ("ldm/modules/vectors.c", "ldm/modules/winograd.c"):
            EXTENSIONS.append(extension(source, *avx2, form="avx2"))
            EXTENSIONS.append(extension(source, *avx512, form="avx512"))
            EXTENSIONS.append(extension(source, *avx512, "-mavx512bf16", "-DBFLOAT16", form="avx512_bf16"))

setup(
    name="freeu-ldm",
    version="0.1.0",
    description="Stable Diffusion's latent diffusion code with FreeU in its U-Net",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # An installation that is no clone draws, too: it carries the configs and the embedded model within.
    packages=[*find_packages(include=["ldm", "ldm.*"]), *CARRIED],
    package_dir=CARRIED,
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildApart},
    package_data={
        "ldm.configs": ["*.yaml", "train/*.yaml"],
        "ldm.checkpoints": ["tiny.safetensors", "judge.safetensors"],
        "ldm.freeu": ["*.c", "*.h"],
        "ldm.modules": ["*.c", "*.h"],
        "ldm.study": ["*.html"],
        "ldm.page": ["*.css", "*.js"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "omegaconf>=2.3",
        "pytorch-lightning>=2.6",
        "einops>=0.7",
        "open-clip-torch>=3.0",
        "safetensors>=0.4.3",
        "filelock>=3.12",
        "huggingface-hub>=1.20",
        "numpy>=1.26",
        "pillow>=10.1",
        "tqdm>=4.66",
    ],
    extras_require={
        **EXTRAS,
        "test": [
            *sorted({need for needs in EXTRAS.values() for need in needs}),
            *("pytest>=8", "pytest-xdist>=3.6.1", "hypothesis>=6.100", "playwright>=1.65"),
            *("ruff>=0.9", "mypy>=1.14"),
        ],
    },
)
