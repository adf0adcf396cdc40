"""``--dry-run``: a whole run on its first batches, which leaves nothing."""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wsfvit.engine.build import Loader
from wsfvit.engine.distributed import World


class FirstBatches:
    """The first ``count`` batches of a loader, as a loader."""

    def __init__(self, loader: Loader, count: int) -> None:
        self.loader, self.count = loader, min(count, len(loader))

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """As the loader's."""
        self.loader.set_position(epoch, first_batch)

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
