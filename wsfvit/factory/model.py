"""From command-line arguments to a model: architecture, initial weights, classifier, norms."""

import argparse
import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.models import resolve_model_input_args
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import wsfvit  # noqa: F401  importing the package registers its models with timm
from wsfvit.checkpoint.io import apply_state_dict, load_checkpoint, load_state_dict_file, with_checkpoint_defaults
from wsfvit.models.fuse import can_fuse, fuse_for_inference
from wsfvit.utils.errors import UserError, first_line
from wsfvit.utils.limits import MAX_SIDE, RESERVED_KWARGS, check_build


def check_model_name(name: str) -> None:
    """Refuse a model that is not registered, and suggest similar names."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them all"
        raise UserError(f"unknown model '{name}': {hint}")


def resolve_model_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``create_model`` for the model that ``args`` describes.

    They include the image size only for models that are built for one. An unknown model or contradictory sizes raise a
    ``UserError``.
    """
    check_model_name(args.model)
    request = {"img_size": args.img_size, "in_chans": args.in_chans, "input_size": args.input_size}
    try:
        if max(side or 0 for side in (args.img_size, args.in_chans, *(args.input_size or ()))) > MAX_SIDE:
            raise ValueError(f"images have at most {MAX_SIDE} pixels a side, and as many channels")
        kwargs = resolve_model_input_args(args.model, request, num_classes=args.num_classes, **args.model_kwargs)
    except Exception as err:  # of any type for values that fit no model
        raise UserError(f"model {args.model}: {first_line(err)}") from err
    kwargs = {key: value for key, value in kwargs.items() if key not in ("model_name", "pretrained_cfg")}
    if getattr(args, "gp", None):  # not every command has it
        kwargs["global_pool"] = args.gp
    return kwargs


def build_model(args: argparse.Namespace, **extra: Any) -> nn.Module:
    """Create the model that ``args`` describes, or raise a ``UserError``; ``extra`` are more arguments (drop rates)."""
    kwargs = resolve_model_kwargs(args)
    shown = ", ".join(f"{key}={str(value)[:40]}" for key, value in kwargs.items())
    if kwargs:
        plain = {key: value for key, value in kwargs.items() if key not in RESERVED_KWARGS}
        saved = getattr(args, "saved_elements", None)  # of the checkpoint, where there is one
        check_build(lambda: timm.create_model(args.model, **plain), saved, f"model {args.model} with {shown}")
    try:
        return timm.create_model(args.model, **kwargs, **extra)
    except UserError:
        raise
    # An invalid size or argument, a missing package, no memory; other types are defects of a model.
    except (ArithmeticError, AssertionError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as err:
        if extra.get("pretrained"):
            raise
        raise UserError(f"model {args.model} cannot be built with {shown}: {first_line(err)}") from err


def load_model(args: argparse.Namespace, pretrained: bool) -> tuple[argparse.Namespace, Any, dict[str, Any]]:
    """Build the model of ``--checkpoint`` with its weights; without one, with timm's pretrained or random weights.

    Returns the arguments completed by the checkpoint, the model, and the checkpoint's metadata.
    """
    if not args.checkpoint and pretrained:
        return args, build_pretrained(args, "--checkpoint"), {"weights": "pretrained"}
    if not args.checkpoint:
        return args, build_model(args), {}
    state_dict, meta = load_state_dict_file(args.checkpoint, use_ema=args.use_ema, trust=args.trust_checkpoint)
    args = with_checkpoint_defaults(args, meta)
    model = build_model(args)
    apply_state_dict(model, state_dict, args.checkpoint)
    return args, model, meta


def build_train_model(args: argparse.Namespace, start: bool = True, log: Callable[[str], None] = print) -> Any:
    """Build the model on the CPU in float32, with the weights to start from unless a run is resumed (not ``start``).

    Initial weights that are missing or do not fit raise a ``UserError``, as ``build_model`` does.
    """
    files = [path for path in (args.pretrained_path, args.initial_checkpoint) if path]
    if len(files) + (args.pretrained and not args.pretrained_path) > 1:
        raise UserError(
            "--pretrained, --pretrained-path and --initial-checkpoint all name weights to start from: pass one"
        )
    if args.fast_norm:
        set_fast_norm()
    rates = {"drop_rate": args.drop, "drop_path_rate": args.drop_path, "drop_block_rate": args.drop_block}
    given = {key: value for key, value in rates.items() if value is not None}
    pretrained = args.pretrained and not files and start
    model: Any = build_pretrained(args, "--pretrained-path", **given) if pretrained else build_model(args, **given)
    if files and start:
        meta = load_checkpoint(model, files[0], use_ema=True, trust=args.trust_checkpoint, replace_classifier=True)
        log(f"starting from the {meta['weights']} weights of {files[0]}")
        if "replaced_classes" in meta:
            log(f"its classifier of {meta['replaced_classes']} classes is replaced by a new one of {model.num_classes}")
    if start:
        _init_classifier(model, args.head_init_scale, args.head_init_bias)
    set_batch_norm_constants(args, model)
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except AssertionError as err:
            raise UserError(f"model {args.model} has no --grad-checkpointing") from err
    return model


def set_batch_norm_constants(args: argparse.Namespace, model: nn.Module) -> None:
    """Set momentum and epsilon of all BatchNorms to ``--bn-momentum`` and ``--bn-eps``, where given."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = module.momentum if args.bn_momentum is None else args.bn_momentum
            module.eps = args.bn_eps or module.eps


def synchronize_batch_norm(model: nn.Module) -> Any:
    """Convert BatchNorms to synchronised ones, in place where possible.

    timm's conversion: torch's drops the activation of a ``BatchNormAct2d``.
    """
    return convert_sync_batchnorm(model)


def build_pretrained(args: argparse.Namespace, instead: str, **extra: Any) -> Any:
    """Build the model with timm's pretrained weights; ``instead`` is the flag that reads weights from a file.

    A model that cannot be built and weights that cannot be fetched raise a ``UserError``.
    """
    with fetching_weights(args.model, instead):
        return build_model(args, pretrained=True, **extra)


@contextmanager
def fetching_weights(name: str, instead: str) -> Iterator[None]:
    """Turn any error while fetching timm's weights into a ``UserError`` of one line; see ``build_pretrained``."""
    try:
        yield
    except UserError:
        raise
    # Hub clients raise their own exception types, and all of them mean the same here.
    except Exception as err:
        raise UserError(
            f"no pretrained weights for {name} ({type(err).__name__}: {first_line(err)}); {instead} FILE reads them "
            "from a file"
        ) from err


def wants_fusion(args: argparse.Namespace, model: Any, device: torch.device, plain: bool = True) -> bool:
    """Whether to fuse: what ``--fuse`` and ``--no-fuse`` say, else on a CPU where ``plain`` (float32, not compiled)."""
    if args.fuse or args.no_fuse:
        return bool(args.fuse)
    return plain and device.type == "cpu" and can_fuse(model)


def fuse_model(name: str, model: Any) -> Any:
    """The fused copy of a model, for ``--fuse``.

    A model with nothing to fuse raises a ``UserError``, as a result labelled as fused would be wrong.
    """
    if not can_fuse(model):
        raise UserError(f"--fuse: {name} has nothing to fuse, the wsfvit models have; leave it out")
    return fuse_for_inference(model)


@torch.no_grad()
def _init_classifier(model: Any, scale: float | None, bias: float | None) -> None:
    heads = model.get_classifier() if scale is not None or bias is not None else ()
    for head in heads if isinstance(heads, (tuple, list)) else (heads,):
        if scale is not None:
            head.weight.mul_(scale)
        if bias is not None:
            nn.init.constant_(head.bias, bias)
