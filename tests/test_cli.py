"""The console command and the lazy names of the package."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys

import pytest

import mmvit
from mmvit import cli
from mmvit.errors import UserError

HEAVY = ("torch", "mmengine", "mmcv", "mmdet", "cv2", "matplotlib", "numpy", "rich", "PIL")


def loaded_after(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has imported after `code`."""
    report = f"import sys\n{code}\nprint('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import mmvit; dir(mmvit); mmvit.__version__",
        "from mmvit.cli import main; main(['--help']); main(['--version']); main(['nonsense'])",
        "from mmvit.cli import main\ntry: main(['predict', '--help'])\nexcept SystemExit: pass",
        "from mmvit.cli import main\ntry: main(['doctor', '--help'])\nexcept SystemExit: pass",
        "from mmvit.cli import main\ntry: main(['leaderboard', '--help'])\nexcept SystemExit: pass",
        "from mmvit.cli import main\ntry: main(['benchmark', '--help'])\nexcept SystemExit: pass",
        "from mmvit.cli import main\ntry: main(['backbones', '--help'])\nexcept SystemExit: pass",
        "import mmvit.weights; mmvit.weights.index(); mmvit.weights.published_figures('upernet')",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    assert loaded_after(code) == set()


def test_lazy_names_are_the_real_ones() -> None:
    from mmvit.architectures import create_model, list_models
    from mmvit.backbones import create_backbone, list_backbones
    from mmvit.inference import Predictor

    assert (mmvit.create_model, mmvit.list_models, mmvit.create_backbone, mmvit.list_backbones, mmvit.Predictor) == (
        create_model,
        list_models,
        create_backbone,
        list_backbones,
        Predictor,
    )
    assert set(mmvit.__all__) <= set(dir(mmvit))
    for package in (mmvit, mmvit.inference):
        with pytest.raises(AttributeError, match="nonsense"):
            package.nonsense  # noqa: B018


def test_every_command_exists() -> None:
    for command in cli.COMMANDS.values():
        assert importlib.util.find_spec(command.module) is not None, command.module
        module = importlib.import_module(command.module)
        parser = argparse.ArgumentParser()
        getattr(module, command.add_arguments)(parser)
        assert callable(getattr(module, command.run))


def test_help_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mmvit {mmvit.__version__}\n"
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["trian"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown command 'trian'. Did you mean 'train'?") and error.count("\n") == 1


def outcome(error: BaseException | None, status: int = 0) -> int:
    def run(args: argparse.Namespace) -> int:
        if error:
            raise error
        return status

    return cli.run_command(lambda parser: None, run, "tool", [])


def test_exit_statuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMVIT_DEBUG", raising=False)
    assert outcome(None) == 0 and outcome(None, 1) == 1
    assert outcome(UserError("x.json: no key 'a'")) == 2
    assert capsys.readouterr().err == "error: x.json: no key 'a'\n"
    assert outcome(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        outcome(ZeroDivisionError())
    monkeypatch.setenv("MMVIT_DEBUG", "1")
    assert outcome(UserError("x")) == 2
    assert "Traceback" in capsys.readouterr().err


def test_wrong_options_of_a_subcommand_exit_with_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmvit.cli", "predict", "a.jpg", "--score"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "usage: mmvit predict" in done.stderr
