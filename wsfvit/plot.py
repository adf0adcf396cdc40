"""``python -m wsfvit.plot RUN...``: the curves of training runs over each other."""

from wsfvit.analysis.plot import parse_plot_args, run_plot
from wsfvit.utils.errors import run_main


def main() -> None:
    """Parses the command line and runs the command."""
    run_plot(parse_plot_args())


if __name__ == "__main__":
    run_main(main)
