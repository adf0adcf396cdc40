"""What a classifier's checkpoint says about itself, taken over by the commands that use it."""

import argparse
import copy
from typing import Any

from wsfvit.errors import UserError


def with_checkpoint_defaults(args: argparse.Namespace, meta: dict[str, Any]) -> argparse.Namespace:
    """Fills in what the command line leaves open from what the checkpoint says about itself.

    Where ``--model`` names another model than the checkpoint does, only the counts of classes and channels are taken.

    Raises:
        UserError: neither the command line nor the checkpoint names a model.
    """
    args = copy.copy(args)
    saved = dict(meta.get("model_kwargs", {}))
    args.model = args.model or meta.get("arch")
    if not args.model:
        raise UserError(f"checkpoint '{args.checkpoint}' does not say which model it is for: pass --model NAME")
    if args.num_classes is None:
        args.num_classes = saved.get("num_classes")
    if args.in_chans is None and args.input_size is None:
        args.in_chans = saved.get("in_chans")
    if args.model == meta.get("arch"):
        size_given = args.img_size is not None or args.input_size is not None
        dropped = {"num_classes", "in_chans"} | ({"img_size"} if size_given else set())
        args.model_kwargs = {k: v for k, v in saved.items() if k not in dropped} | args.model_kwargs
    return args


def saved_data_config(model: str, meta: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint says about its images, for ``resolve_data``; of another model's, mean and std alone.

    These two belong to the weights, size and crop to the model.
    """
    saved = meta.get("data_config", {})
    return {key: value for key, value in saved.items() if model == meta.get("arch") or key in ("mean", "std")}


def note_on_other_model(args: argparse.Namespace, meta: dict[str, Any]) -> str:
    """A line about weights that were loaded into another model than they are of; "" where they were not."""
    # Models of one family share their keys, so that loading tells nothing.
    if meta.get("arch") in (None, args.model):
        return ""
    return (
        f"note: checkpoint '{args.checkpoint}' is of {meta['arch']}, its weights run as {args.model}: at that model's "
        "size and crop, with the checkpoint's mean and std"
    )
