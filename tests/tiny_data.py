"""A data set small enough for whole trainings within a test."""

import numpy as np
from PIL import Image

CLASSES = 4


class TinyImages:
    """``count`` images (PIL, RGB, 40 x 36) of noise around the brightness of their class."""

    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.labels = [index % CLASSES for index in range(count)]
        pixels = [rng.integers(0, 160, (36, 40, 3)) + 30 * label for label in self.labels]
        self.images = [Image.fromarray(image.astype(np.uint8)) for image in pixels]
        self.class_to_idx = {str(label): label for label in range(CLASSES)}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def write_folder(root, count=16):
    """Writes train/ and validation/ as image folders below ``root``."""
    data = TinyImages(count)
    for split in ("train", "validation"):
        for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index}.png")
    return root


# With TinyImages in place of the data: twelve batches of four images in two epochs.
TINY_RUN = ["--model", "test_resnet", "--num-classes", str(CLASSES), "--img-size", "32", "--device", "cpu", "-j", "0"]
TINY_RUN += ["-b", "4", "-vb", "8", "--epochs", "2", "--warmup-epochs", "0", "--opt", "adamw", "--lr", "1e-3"]
TINY_RUN += ["--no-tensorboard"]
