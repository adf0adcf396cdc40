"""``python -m wsfvit COMMAND``: the ``wsfvit`` command without an installation."""

from wsfvit_cli import main

if __name__ == "__main__":
    main(prog="python -m wsfvit")
