"""``python -m wsfvit.benchmarks``: the benchmark programs are outside the package."""

import sys

if __name__ == "__main__":
    print("error: the benchmarks moved out of the package: python -m benchmarks.NAME in a checkout", file=sys.stderr)
    sys.exit(2)
