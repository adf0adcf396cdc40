"""Flags and values of timm that train.py or validate.py does not support, with the reason and the alternative."""

import argparse
from typing import Any

from wsfvit.cli.common import Group
from wsfvit.utils.errors import UserError

REFUSED = {
    "--dataset-trust-remote-code": "it runs code that came with a data set; convert the data to an image folder, "
    "WebDataset shards or parquet files",
    "--torchscript": "TorchScript is deprecated in PyTorch; use --torchcompile",
    "--fuser": "it chooses a fuser of TorchScript, which is deprecated; use --torchcompile",
    "--local_rank": "torchrun passes the rank in the environment; start with torchrun --nproc-per-node N train.py ...",
    "--aug-splits": "it is for AugMix training with several views of each image; use --aa, --mixup and --cutmix",
    "--jsd-loss": "it compares the views of --aug-splits, which is not offered; use --smoothing or --bce-loss",
    "--split-bn": "it separates the views of --aug-splits, which is not offered; plain batch norm serves one view",
    "--resplit": "it spares the first view of --aug-splits from erasing, which is not offered; use only --reprob",
    "--drop-connect": "it has no effect in timm any more; use --drop-path",
    "--use-multi-epochs-loader": "the loader always keeps its workers from epoch to epoch; leave the flag out",
}
REFUSED_VALIDATE = {flag: REFUSED[flag] for flag in ("--dataset-trust-remote-code", "--torchscript", "--fuser")} | {
    "--num-gpu": "one process drives one GPU; start with torchrun --nproc-per-node N validate.py ...",
    "--test-pool": "it pools before the bare classifier and so skips the norm and the hidden layer of most heads; "
    "leave it out, the models take other sizes unchanged",
    "--aot-autograd": "it was an experiment that led to torch.compile; use --torchcompile",
    "--tf-preprocessing": "it needs TensorFlow; use --interpolation bicubic, which is close",
}
REFUSED_VALUES = {
    "--amp-impl": {"apex": "NVIDIA Apex amp is no longer developed; leave the flag out for PyTorch's own (native)"},
    "--worker-seeding": {
        "part": "every image has its own seed, whatever the worker; leave the flag out for that (all)"
    },
}


class Refuse(argparse.Action):
    """Raise a ``UserError`` with the reason when the flag is used."""

    def __call__(self, *_: Any, **__: Any) -> None:
        raise UserError(str(self.const))


def add_refused(group: Group, refused: dict[str, str] = REFUSED) -> None:
    """Add every refused flag, hidden from ``--help``."""
    for flag, reason in refused.items():
        hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        group.add_argument(flag, action=Refuse, nargs="*", const=f"{flag} is not supported: {reason}", **hidden)


def add_accepted(group: Group, flag: str, only: str) -> None:
    """Add a timm flag with a single supported value; the others are refused with the reason."""

    def read(text: str) -> str:
        if text != only:
            reason = REFUSED_VALUES[flag].get(text, f"must be {only}")
            raise argparse.ArgumentTypeError(f"{text} is not supported: {reason}")
        return text

    group.add_argument(flag, type=read, default=only, metavar="NAME", help=f"only {only}")
