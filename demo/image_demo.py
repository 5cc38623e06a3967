"""Detect objects in pictures and videos: ``python demo/image_demo.py img.jpg``. The same as ``mmvit predict``."""

import sys

from mmvit.cli import run_command
from mmvit.inference import command

if __name__ == "__main__":
    sys.exit(run_command(command.add_arguments, command.run, prog="image_demo.py"))
