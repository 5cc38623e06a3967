"""Find objects, or the class of every pixel, in pictures and videos. The same as ``mmvit predict``.

``python demo/image_demo.py img.jpg`` draws boxes, ``python demo/image_demo.py street.jpg --model segformer_mit_b0_cityscapes``
colours every pixel by its class.
"""

import sys

from mmvit.cli import run_command
from mmvit.inference import command

if __name__ == "__main__":
    sys.exit(run_command(command.add_arguments, command.run, prog="image_demo.py"))
