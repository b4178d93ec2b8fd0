"""Packaging: `kernels/` is installed as `intrasense_fast.kernels`, so no importable package is
called `kernels`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "intrasense_fast" / "version.py").read_text()
).group(1)

KERNELS = ["intrasense_fast.kernels"] + [
    f"intrasense_fast.kernels.{name}" for name in find_packages("kernels")
]

setup(
    name="intrasense-fast",
    version=VERSION,
    description="IntraSense-Net for ultrasound segmentation, with fused Triton kernels",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(
        include=["intrasense_fast", "intrasense_fast.*"], exclude=["intrasense_fast.kernels*"]
    )
    + KERNELS,
    package_dir={"intrasense_fast.kernels": "kernels"},
    package_data={"intrasense_fast": ["py.typed"], **{name: ["README.md"] for name in KERNELS}},
    install_requires=[
        "torch>=2.11",
        # Triton has wheels for Linux only; elsewhere every operator runs eager.
        "triton>=3.6; platform_system == 'Linux'",
        "numpy>=1.26",
        "opencv-python>=4.10",
        "tqdm>=4.66",
        # Weights without pickle: a file that cannot run code, and detects truncation.
        "safetensors>=0.5",
        # Curves, overlays and masked-fraction maps of every run.
        "matplotlib>=3.8",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-benchmark>=5",
            # The suite on all cores.
            "pytest-xdist>=3.5",
            # Independent oracles: metrics against scikit-learn, distances and entropies against
            # scipy.
            "scikit-learn>=1.4",
            "scipy>=1.11",
            # Event files, and jobs of a cluster on one machine.
            "tensorboard>=2.15",
            "submitit>=1.5",
            # Hugging Face's package of that name, which ours must live beside; setuptools to build
            # the wheel under test.
            "kernels>=0.10",
            "setuptools>=70",
        ],
        # Intervals and tests of compare and ablate.
        "study": ["scipy>=1.11"],
        # Event files beside a run's own logs: --log tensorboard.
        "tensorboard": ["tensorboard>=2.15"],
        # Grids on a cluster: --executor slurm.
        "slurm": ["submitit>=1.5"],
        # What `export` writes and checks: ONNX files and the runtime that reads them back.
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
        # DICOM in, compressed transfer syntaxes among it, and DICOM Segmentation out.
        "dicom": [
            "pydicom>=3.0",
            "highdicom>=0.25",
            "pylibjpeg>=2.0",
            "pylibjpeg-libjpeg>=2.2",
            "pylibjpeg-openjpeg>=2.3",
            "pylibjpeg-rle>=2.0",
        ],
        # from_pretrained("owner/name") and push_to_hub.
        "hub": ["huggingface_hub>=0.30"],
        # The page of the command `app`.
        "app": ["gradio>=6"],
        # The notebook under examples/, executed.
        "notebook": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],
        "lint": ["ruff>=0.9", "mypy>=1.14"],
        # The site under docs/, built strictly by CI.
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"],
    },
    entry_points={"console_scripts": ["intrasense-fast=intrasense_fast.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
