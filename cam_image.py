#!/usr/bin/env python3
"""Draw where a model sees the evidence for a class: class activation maps of any timm model, side by side.

python cam_image.py --data-dir ./images --checkpoint output/train/RUN/model_best.pth.tar
python cam_image.py --dataset digits --num-images 8 --checkpoint A.pth.tar B.pth.tar --method gradcam hirescam layercam
python cam_image.py photos --models wsfvit_t_224 convnext_tiny --checkpoint wsfvit_t.pth.tar convnext_tiny.safetensors
"""

from wsfvit.analysis.cam import run_cam
from wsfvit.cli.tools import cam_parser
from wsfvit.utils.errors import run_main
from wsfvit_cli import run_command


def main() -> None:
    run_command(cam_parser(), run_cam)


if __name__ == "__main__":
    run_main(main)
