"""``mmvit doctor``: what is installed, what works, and what to do about the rest."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from mmvit.errors import UserError

OK, NOTE, FAIL = "ok", "note", "FAIL"


class Finding(NamedTuple):
    """One line of the report. `state` is OK, NOTE (works without it) or FAIL; `remedy` says what to do."""

    state: str
    topic: str
    text: str
    remedy: str = ""


# What only some tasks need: import name -> the task.
OPTIONAL = {
    "cityscapesscripts": "only to prepare Cityscapes",
    "transformers": "only for a peer in `mmvit benchmark MODEL`",
}
# Import name -> (names of the distributions that provide it, the recommended first; whether everything needs it).
PACKAGES: dict[str, tuple[tuple[str, ...], bool]] = {
    "torch": (("torch",), True),
    "mmengine": (("onedl-mmengine", "mmengine", "mmengine-lite"), True),
    "mmcv": (("onedl-mmcv", "mmcv", "mmcv-lite"), True),
    "mmdet": (("onedl-mmdetection", "mmdet"), False),
    "mmseg": (("onedl-mmsegmentation", "mmsegmentation"), False),
    "cv2": (("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"), True),
    "pycocotools": (("pycocotools",), True),
    "faster_coco_eval": (("faster-coco-eval",), True),
    "numpy": (("numpy",), True),
    "scipy": (("scipy",), True),
    "PIL": (("pillow",), True),
    "rich": (("rich",), True),
    "safetensors": (("safetensors",), True),
    "matplotlib": (("matplotlib",), True),
    **{name: ((name,), False) for name in OPTIONAL},
}
_MUST_IMPORT = ("torch", "mmengine", "cv2", "pycocotools.mask")  # compiled or large: installed does not mean usable
_DATASETS = {
    "COCO": (
        "data/coco",
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017", "val2017"),
    ),
    "ADE20K": ("data/ade20k", ("images", "annotations")),
    "Cityscapes": ("data/cityscapes", ("leftImg8bit", "gtFine")),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`run` takes no options."""


def run(args: argparse.Namespace) -> int:
    """Check versions, devices, operators, data and weights; say the remedy for what is missing.

    Returns 0 if training and prediction can work here, else 1. A missing dataset is no failure.
    """
    failures = 0
    for check in (versions, imports, devices, operators, datasets, weight_cache, disk):
        for finding in _guarded(check):
            failures += finding.state == FAIL
            print(f"{finding.state:<5} {finding.topic:<18} {finding.text}", flush=True)
            if finding.remedy:
                print(f"{'':<5} {'':<18} -> {finding.remedy}", flush=True)
    print(
        f"{failures} problem{'s' if failures != 1 else ''} to mend, see the lines with {FAIL}"
        if failures
        else "all that is needed to train and to predict is here"
    )
    return 1 if failures else 0


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of `check`; one that breaks is itself a finding."""
    try:
        yield from check()
    except Exception as error:  # a broken installation breaks in any way
        yield Finding(FAIL, check.__name__.replace("_", " "), _one_line(error), "reinstall: pip install -e .")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def installed(distributions: Sequence[str]) -> tuple[str, str] | None:
    """(name, version) of the first of `distributions` that is installed."""
    for name in distributions:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def versions() -> Iterator[Finding]:
    """Versions by the packages' metadata, without importing them."""
    from mmvit import __version__

    too_old = sys.version_info < (3, 10)
    yield Finding(
        FAIL if too_old else OK,
        "python",
        f"{platform.python_version()} at {sys.executable}",
        "use Python 3.10 or later" if too_old else "",
    )
    yield Finding(OK, "mmvit", f"{__version__} at {Path(__file__).parent}")
    for name, (distributions, needed) in PACKAGES.items():
        found = installed(distributions)
        if found:
            yield Finding(OK, name, found[1] + (f" ({found[0]})" if found[0] != name else ""))
        else:
            what = f"not installed: {OPTIONAL[name]}" if name in OPTIONAL else "not installed"
            yield Finding(FAIL if needed else NOTE, name, what, f"pip install {distributions[0]}")


def imports() -> Iterator[Finding]:
    """Whether the compiled packages can be imported. (A package that is not installed is the business of `versions`.)"""
    for name in _MUST_IMPORT:
        if installed(PACKAGES[name.partition(".")[0]][0]) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            yield Finding(FAIL, f"import {name}", _one_line(error), _import_remedy(name.partition(".")[0], str(error)))


def _import_remedy(name: str, message: str) -> str:
    if name == "cv2" and any(library in message for library in ("libGL", "libgthread", "libglib", "libxcb", "libSM")):
        return (
            "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless "
            "(or apt-get install -y libgl1 libglib2.0-0)"
        )
    if "numpy" in message.lower():
        return f"pip install --upgrade numpy {PACKAGES[name][0][0]}"
    return f"pip install --force-reinstall {PACKAGES[name][0][0]}"


def devices() -> Iterator[Finding]:
    """CUDA devices and the CPU."""
    import torch

    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        yield Finding(OK, f"cuda:{i}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    if not torch.cuda.is_available():
        yield _no_cuda(torch.version.cuda)
    yield Finding(OK, "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used by PyTorch")


def _no_cuda(built_for: str | None) -> Finding:
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidia0").exists():
        return Finding(NOTE, "cuda", "no NVIDIA GPU found: everything runs on the CPU")
    if built_for is None:
        return Finding(
            NOTE,
            "cuda",
            "there is an NVIDIA driver, but this PyTorch is built for the CPU only",
            "install PyTorch for CUDA with the command from https://pytorch.org/get-started/locally",
        )
    return Finding(
        NOTE,
        "cuda",
        f"there is an NVIDIA driver, but PyTorch (CUDA {built_for}) sees no device",
        f"update the driver to one that supports CUDA {built_for}, and check CUDA_VISIBLE_DEVICES",
    )


def operators() -> Iterator[Finding]:
    """Which implementation serves each operator: compiled mmcv, torchvision or PyTorch."""
    from mmvit.ops import implementations
    from mmvit.ops.stand_in import install_command

    missing = []
    for name, implementation in implementations().items():
        if implementation == "missing":
            missing.append(name)
        else:
            yield Finding(OK, name, implementation)
    if missing:
        yield Finding(
            NOTE,
            "other mmcv ops",
            f"{len(missing)} absent, which mmvit does not use: {', '.join(missing)}",
            f"only for models of your own that call them: {install_command()}",
        )


def datasets() -> Iterator[Finding]:
    """Dataset folders under the current one."""
    for name, (folder, parts) in _DATASETS.items():
        if not Path(folder).is_dir():
            yield Finding(
                NOTE, name, f"no folder {folder} here", f"to train or test on {name}, put the data there or link {folder} to it"
            )
            continue
        missing = [part for part in parts if not (Path(folder) / part).exists()]
        yield Finding(NOTE if missing else OK, name, f"{folder}" + (f" lacks {', '.join(missing)}" if missing else ""))


def weight_cache() -> Iterator[Finding]:
    """Files in the weight cache, each compared with its recorded SHA-256, and those in the package."""
    from mmvit.weights import cache_dir, check_sha256
    from mmvit.weights.catalogue import FILES, index

    folder = cache_dir()
    extra = (".sha256", ".lock", ".json")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix not in extra) if folder.is_dir() else []
    size = sum(path.stat().st_size for path in files) / 2**20
    yield Finding(OK, "weight cache", f"{folder}: {len(files)} files, {size:.0f} MiB")
    for path in files:
        yield _cached_file(path, check_sha256)
    for entry in index().values():
        if entry.packaged:
            here = (FILES / entry.packaged).is_file()
            yield Finding(
                OK if here else NOTE,
                entry.name,
                "in the package" if here else "not in this package",
                "" if here else f"make it with `{entry.made_by}`",
            )


def _cached_file(path: Path, check_sha256: Callable[[Path], str | None]) -> Finding:
    size = f"{path.stat().st_size / 2**20:.1f} MiB"
    if path.suffix == ".part":
        return Finding(
            NOTE, "", f"{path.name}: {size}, an unfinished download", "it is continued when the weights are next used"
        )
    try:
        digest = check_sha256(path)
    except UserError as error:
        return Finding(FAIL, "", f"{path.name}: SHA-256 differs from the recorded one", str(error).rpartition(": ")[2])
    return Finding(OK, "", f"{path.name}: {size}, " + ("SHA-256 as recorded" if digest else "SHA-256 not recorded yet"))


def disk() -> Iterator[Finding]:
    """Free space for weights and for training runs."""
    from mmvit.weights import cache_dir

    cache = cache_dir()
    for topic, path in (
        ("disk, weights", next(p for p in (cache, *cache.absolute().parents) if p.exists())),
        ("disk, here", Path.cwd()),
    ):
        free = shutil.disk_usage(path).free / 2**30
        yield Finding(
            OK if free >= 2 else NOTE,
            topic,
            f"{free:.1f} GiB free at {path}",
            "" if free >= 2 else "a checkpoint in training takes up to 1 GiB: free some space",
        )
