import platform
import sys
import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

# The tests pass on Python 3.10 with the oldest release that each bound admits, and on Python 3.13 with the
# newest of November 2026: torch 2.15, Lightning 2.6.6, open_clip 3.3, OmegaConf 2.4, diffusers 0.42.1.
EXTRAS = {
    "diffusers": ["diffusers>=0.35.2", "transformers>=5", "accelerate>=1.0", "peft>=0.18"],
    "demo": ["gradio>=6.31"],
    "fid": ["torch-fidelity>=0.4"],
    "figures": ["matplotlib>=3.8"],
    "search": ["optuna>=5", "matplotlib>=3.8"],
}

# Attention by an Intel processor's tiles, which ldm/modules/tiles.py looks for. Its name has the checksum of
# its source, so that none made of an older one is taken for it. Without a compiler the rest installs.
TILES = "ldm/modules/tiles.c"
EXTENSIONS = [
    Extension(
        f"ldm.modules._tiles_{zlib.crc32((Path(__file__).parent / TILES).read_bytes()):08x}",
        [TILES],
        extra_compile_args=["-O3", "-march=sapphirerapids", "-fopenmp"],
        extra_link_args=["-fopenmp"],
        optional=True,
    )
]

setup(
    name="freeu-ldm",
    version="0.1.0",
    description="Stable Diffusion's latent diffusion code with FreeU in its U-Net",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["ldm", "ldm.*"]),
    ext_modules=EXTENSIONS if (sys.platform, platform.machine()) == ("linux", "x86_64") else [],
    package_data={"ldm.modules": ["*.c"], "ldm.study": ["*.html"], "ldm.page": ["*.css", "*.js"]},
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
