from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    # The oldest and the newest diffusers that the tests ran on: 0.35.2 and 0.42.1.
    "diffusers": ["diffusers>=0.35.2", "transformers>=5", "accelerate", "peft>=0.17"],
    "demo": ["gradio>=6"],
    "figures": ["matplotlib>=3.8"],
    "search": ["optuna>=4", "matplotlib>=3.8"],
}

setup(
    name="freeu-ldm",
    version="0.1.0",
    description="Stable Diffusion's latent diffusion code with FreeU in its U-Net",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["ldm", "ldm.*"]),
    package_data={"ldm.study": ["*.html"], "ldm.page": ["*.css", "*.js"]},
    install_requires=[
        "torch>=2.5",
        "torchvision",
        "omegaconf>=2.3",
        "pytorch-lightning>=2.6",
        "einops",
        "open-clip-torch>=3.0",
        "safetensors>=0.4",
        "filelock>=3.12",
        "huggingface-hub>=1.0",
        "numpy>=1.26",
        "pillow>=10.1",
        "tqdm",
    ],
    extras_require={
        **EXTRAS,
        "test": [
            *sorted({need for needs in EXTRAS.values() for need in needs}),
            *("pytest>=8", "hypothesis>=6.100", "playwright", "ruff", "mypy"),
        ],
    },
)
