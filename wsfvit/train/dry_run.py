"""``--dry-run``: a whole run on its first batches, which leaves nothing."""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wsfvit.factory.data import Loader
from wsfvit.utils.distributed import World


class FirstBatches:
    """The first ``count`` batches of a loader, as a loader; everything else is the loader's own."""

    def __init__(self, loader: Loader, count: int) -> None:
        self.loader, self.count = loader, min(count, len(loader))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.count)


@contextmanager
def temporary_output(args: argparse.Namespace, world: World) -> Iterator[None]:
    """Puts a temporary folder, gone in the end, in the place of ``--output``; nothing is resumed from it."""
    with tempfile.TemporaryDirectory() as folder:
        args.output, args.experiment, args.resume = world.gather(folder)[0], "", ""
        yield
