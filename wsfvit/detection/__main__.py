"""``python -m wsfvit.detection COMMAND``: the same as ``wsfvit detection COMMAND``."""

from wsfvit_cli import main

if __name__ == "__main__":
    main(prog="python -m wsfvit.detection", group="detection")
