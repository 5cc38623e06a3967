"""Find objects, the class of every pixel, or both, in pictures and videos. The same as ``mmvit predict``.

``python demo/image_demo.py img.jpg`` draws boxes, ``python demo/image_demo.py street.jpg --model segformer_mit_b0_cityscapes``
colours every pixel by its class. ``python demo/image_demo.py img.jpg --checkpoint work_dirs/pem_coco_panoptic/best.pth`` draws
objects and regions and writes them as COCO panoptic json and PNG; ``--task instance`` draws the objects only.
"""

import sys

from mmvit.cli import run_command
from mmvit.inference import command

if __name__ == "__main__":
    sys.exit(run_command(command.add_arguments, command.run, prog="image_demo.py"))
