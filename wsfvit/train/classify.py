"""Image classification: the task of train.py."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from wsfvit.data import dataset_class_names, dataset_notes, dataset_num_classes, same_images
from wsfvit.data.factory import splits_overlap
from wsfvit.eval.evaluate import evaluate
from wsfvit.factory.data import Loader, build_train_loader, build_val_loader, check_class_order, resolve_data
from wsfvit.factory.model import build_train_model, resolve_model_kwargs
from wsfvit.factory.recipe import build_erasing, build_loss, build_mixup
from wsfvit.train.task import Task
from wsfvit.train.trainer import Result, run_task
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.precision import amp_dtype, memory_format, model_dtype

Batch = tuple[torch.Tensor, torch.Tensor]


def run_training(args: argparse.Namespace) -> Result:
    """Train a classifier; see ``run_task``."""
    return run_task(args, Classification)


class Classification(Task):
    """Batches are images (B, C, H, W) and labels: (B,) from the loader, (B, K) once they are mixed."""

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        super().__init__(args, world)
        self.lower_is_better = args.eval_metric == "loss"
        self.metric = "val_loss" if self.lower_is_better else args.eval_metric
        self.layout, self.dtype = memory_format(args), model_dtype(args)
        self.class_names: list[str] | None = None

    def build_model(self, start: bool) -> nn.Module:
        model: nn.Module = build_train_model(self.args, start, self.world.log)
        self.data_config = resolve_data(self.args, model)
        return model

    def build_loaders(self, model: Any) -> tuple[Loader, Loader]:
        self.num_classes = model.num_classes
        self.trivial = () if self.num_classes > 5 else ("top5",)
        loaders = [
            build(self.args, self.data_config, model.num_classes, self.world)
            for build in (build_train_loader, build_val_loader)
        ]
        train_set, val_set = (loader.dataset for loader in loaders)
        self.class_names = dataset_class_names(train_set)
        check_class_order(dataset_class_names(val_set), self.class_names, "the training data")
        self.build_loss(model.num_classes)
        for note in self._notes(train_set, val_set):
            self.world.log(f"note: {note}")
        return loaders[0], loaders[1]

    def build_loss(self, num_classes: int) -> None:
        """Build the part of the recipe that works on whole batches: erasing, mixing and loss."""
        self.mixup = build_mixup(self.args, num_classes)
        self.erasing = build_erasing(self.args, self.world.device)
        # Maps logits (B, K) and labels to the mean loss.
        self.criterion = build_loss(self.args, mixed=self.mixup is not None).to(self.world.device)

    def _notes(self, train_set: Any, val_set: Any) -> Iterator[str]:
        """Settings that were probably not intended."""
        args, classes = self.args, dataset_num_classes(train_set)
        yield from dict.fromkeys(dataset_notes(train_set) + dataset_notes(val_set))
        if args.num_classes is None and classes is not None and classes < self.num_classes:
            yield f"the data has {classes} classes, the model {self.num_classes}: pass --num-classes {classes}"
        same = same_images(train_set, val_set)
        if args.dataset and splits_overlap(args.train_split, args.val_split):
            same = args.train_split == args.val_split
            if not same:
                raise UserError(
                    f"--train-split {args.train_split} and --val-split {args.val_split} have images in common: divide "
                    "them, as in train[:90%] and train[90%:]"
                )
        if same:
            yield "validation runs on the training images: divide them into train/ and val/, or train.tar and val.tar"
        if args.sched != "none" and not args.warmup_prefix and args.epochs <= args.warmup_epochs:
            yield (
                f"the learning rate is still warming up when the run ends: --epochs {args.epochs} is within "
                f"--warmup-epochs {args.warmup_epochs}"
            )

    def begin_epoch(self, epoch: int) -> None:
        """Turn mixing on or off; off, it still makes the soft labels that the loss expects."""
        if self.mixup is not None:
            self.mixup.mixup_enabled = not 0 < self.args.mixup_off_epoch <= epoch

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        images, labels = (part.to(device, non_blocking=True) for part in batch)
        if self.erasing is not None:
            images = self.erasing(images)
        if self.mixup is not None:
            # Images are mixed in pairs; a batch can be odd where an unreadable image was skipped.
            even = len(images) - len(images) % 2
            images, labels = self.mixup(images[:even], labels[:even])
        return images.to(self.dtype, memory_format=self.layout), labels

    def count(self, batch: Batch) -> int:
        return len(batch[0])

    def loss(self, forward: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images, labels = batch
        return self.criterion(forward(images), labels), {}

    def evaluate(self, model: nn.Module, loader: Loader, title: str) -> dict[str, float]:
        """Returns val_loss, top1 and top5 (in percent)."""
        args, world = self.args, self.world
        model = MirrorMean(model) if args.tta == 2 else model
        precision = amp_dtype(args), self.layout
        figures = evaluate(model, loader, world.device, *precision, title, args.log_interval, world)
        return {"val_loss": figures["loss"], "top1": figures["top1"], "top5": figures["top5"]}

    def name(self) -> str:
        height, width = (self.args.input_size or (0, self.args.img_size, self.args.img_size))[1:]
        size = [] if height is None else [str(height) if height == width else f"{height}x{width}"]
        return "-".join([self.args.model, *size])

    def title(self) -> str:
        return f"{self.args.model} at {'x'.join(map(str, self.data_config['input_size']))}"

    def describe(self) -> dict[str, Any]:
        kwargs = resolve_model_kwargs(self.args)
        kwargs |= {"num_classes": self.num_classes, "in_chans": self.data_config["input_size"][0]}
        found = {"task": "classification", "arch": self.args.model, "model_kwargs": kwargs}
        names = {"class_names": self.class_names} if self.class_names else {}
        return found | {"data_config": self.data_config} | names

    def counts(self) -> dict[str, int]:
        return {"classes": self.num_classes}

    def images(self, batch: Batch) -> torch.Tensor:
        return batch[0]


class MirrorMean(nn.Module):
    """A classifier whose logits are the mean over each image (B, C, H, W) and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        logits: torch.Tensor = (self.model(images) + self.model(images.flip(-1))) / 2
        return logits
