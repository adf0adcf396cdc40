"""Handling of unreadable images: stop and name the image, or skip and count it."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import Dataset, default_collate

from wsfvit.data.images import BadImageError, describe
from wsfvit.data.labels import wrong_label
from wsfvit.utils.errors import UserError

OnBadImage = Literal["raise", "skip"]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadImage:
    """Placeholder in a batch for an unreadable image or a wrong label (index None); the main process handles it."""

    index: int | None
    message: str


class TransformedDataset(Dataset[Any]):
    """Items (transformed image, label) of a dataset of (image, label), or a ``BadImage`` for one that cannot be read.

    Nothing is raised here: an exception would leave the worker process as text with a traceback.
    """

    def __init__(self, dataset: Any, transform: Callable[[Any], Any]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            image, label = self.dataset[index]
        except BadImageError as err:
            return BadImage(index, str(err))
        except Exception as err:  # a torchvision dataset; only its reading runs here
            return BadImage(index, f"cannot read item {index} of the dataset: {describe(err)}")
        return self.transform(image), label


class ReportingCollate:
    """Collate the readable images: (batch, or None if there is none, and the list of ``BadImage``).

    With ``num_classes``, check that the labels of samples (image, label) are below it.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] = default_collate, num_classes: int | None = None) -> None:
        self.collate, self.num_classes = collate, num_classes

    def __call__(self, samples: list[Any]) -> tuple[Any | None, list[BadImage]]:
        good = [sample for sample in samples if not isinstance(sample, BadImage)]
        bad = [sample for sample in samples if isinstance(sample, BadImage)]
        if self.num_classes is not None:
            wrong = next(filter(None, (wrong_label(sample[1], self.num_classes) for sample in good)), None)
            if wrong:
                return None, [BadImage(None, f"the data has {wrong}: correct the data, or see --target-key")]
        return (self.collate(good) if good else None), bad


class CheckedBatches:
    """The batches of a loader that collates with ``ReportingCollate``.

    ``raise`` stops at the first bad image; ``skip`` leaves it out, which makes the batch smaller, warns once per image,
    and keeps its index and message in ``bad_images``.
    """

    def __init__(self, loader: Any, on_bad_image: OnBadImage) -> None:
        self.loader, self.on_bad_image = loader, on_bad_image
        self.bad_images: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches.

        Raises:
            UserError: A label is wrong, an image is bad under ``raise``, or all images of a batch are.
        """
        for batch, bad in self.loader:
            for image in bad:
                self._report(image)
            if batch is None:
                raise UserError(f"all {len(bad)} images of a batch cannot be read, the first: {bad[0].message}")
            yield batch

    def _report(self, image: BadImage) -> None:
        if image.index is None:
            raise UserError(image.message)
        if self.on_bad_image == "raise":
            raise UserError(f"{image.message}; repair or remove it, or pass --on-bad-image skip")
        if image.index not in self.bad_images:
            self.bad_images[image.index] = image.message
            _logger.warning("left out, %d so far: %s", len(self.bad_images), image.message)
