"""``python -m wsfvit.video COMMAND``: the same as ``wsfvit video COMMAND``."""

from wsfvit_cli import main

if __name__ == "__main__":
    main(prog="python -m wsfvit.video", group="video")
