"""`mmvit doctor`: what it says about whole and broken installations."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mmvit import cli, doctor
from mmvit.weights import download


def findings(check, topic: str = "") -> list[doctor.Finding]:
    return [finding for finding in check() if topic in finding.topic]


def test_doctor_finds_this_installation_sound(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMVIT_CACHE", str(tmp_path / "cache"))
    status = cli.main(["doctor"])
    out = capsys.readouterr().out
    assert status == 0, out
    for word in (
        "python",
        "torch",
        "mmengine",
        "mmcv",
        "mmdet",
        "mmseg",
        "mmvit",
        "pycocotools",
        "faster-coco-eval",
        "opencv",
        "nms",
        "ms_deform_attn",
        "COCO",
        "ADE20K",
        "Cityscapes",
        str(tmp_path / "cache"),
        "GiB free",
        "cpu",
    ):
        assert word in out


def test_missing_packages_get_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {finding.topic: finding for finding in doctor.versions()}
    assert found["mmengine"].state == doctor.FAIL and found["mmengine"].remedy == "pip install onedl-mmengine"
    assert found["faster_coco_eval"].remedy == "pip install faster-coco-eval"
    assert found["mmdet"].state == doctor.NOTE
    optional = found["cityscapesscripts"]
    assert optional.state == doctor.NOTE and optional.text == "not installed: only to prepare Cityscapes"


def test_stock_distributions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "mmcv":
            raise metadata.PackageNotFoundError(name)
        return "2.1.0"

    monkeypatch.setattr(metadata, "version", version)
    assert findings(doctor.versions, "mmcv") == [doctor.Finding(doctor.OK, "mmcv", "2.1.0")]


def test_opencv_without_libgl_in_a_real_process(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MMVIT_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "mmvit.cli", "doctor"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 1
    assert "FAIL  import cv2" in done.stdout and "libGL.so.1" in done.stdout and "opencv-python-headless" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_check_that_breaks_is_a_finding() -> None:
    def operators():
        raise RuntimeError("two\nlines")
        yield

    assert list(doctor._guarded(operators)) == [
        doctor.Finding(doctor.FAIL, "operators", "RuntimeError: two lines", "reinstall: pip install -e .")
    ]


def test_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(finding.state == doctor.NOTE and finding.remedy for finding in doctor.datasets())
    (tmp_path / "data/ade20k/images").mkdir(parents=True)
    (tmp_path / "data/cityscapes/gtFine").mkdir(parents=True)
    (tmp_path / "data/cityscapes/leftImg8bit").mkdir()
    found = {finding.topic: finding for finding in doctor.datasets()}
    assert found["ADE20K"].text == "data/ade20k lacks annotations" and found["Cityscapes"].state == doctor.OK


def test_weight_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMVIT_CACHE", str(tmp_path))
    for name in ("good.pth", "bad.pth", "hand.pth"):
        (tmp_path / name).write_bytes(name.encode())
    download._record_sha256(tmp_path / "good.pth", download.sha256(tmp_path / "good.pth"))
    download._record_sha256(tmp_path / "bad.pth", "0" * 64)
    (tmp_path / "late.pth.part").write_bytes(b"x")
    lines = {finding.text.partition(":")[0]: finding for finding in doctor.weight_cache()}
    assert lines["good.pth"].state == doctor.OK and "as recorded" in lines["good.pth"].text
    assert lines["bad.pth"].state == doctor.FAIL and str(tmp_path / "bad.pth") in lines["bad.pth"].remedy
    assert "not recorded" in lines["hand.pth"].text and lines["late.pth.part"].state == doctor.NOTE
    assert "4 files" in lines[str(tmp_path)].text
