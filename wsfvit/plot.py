"""``python -m wsfvit.plot RUN...``: the same as ``wsfvit plot``."""

import sys

from wsfvit_cli import main

if __name__ == "__main__":
    main(["plot", *sys.argv[1:]], prog="python -m wsfvit")
