"""Packaging of mmvit: ``pip install -e .`` needs no compiler."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    return [line for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines() if line and line[0] != "#"]


setup(
    name="mmvit",
    version="0.1.0",
    description="Vision backbones in detectors and segmenters, on the OpenMMLab stack",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["mmvit", "mmvit.*"]),
    package_data={"mmvit": ["py.typed", "backbones/*.json", "weights/*.json", "weights/files/*"]},
    install_requires=requirements("runtime"),
    extras_require={
        "tests": requirements("tests"),
        "benchmark": requirements("benchmark"),
        "cityscapes": requirements("cityscapes"),
    },
    entry_points={"console_scripts": ["mmvit=mmvit.cli:main"]},
)
