"""The training loop of one process, and the train command."""

import argparse
import copy
import csv
import io
import math
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad, random_seed
from torch import nn
from torch.amp.grad_scaler import GradScaler

from wsfvit.engine.build import (
    DataConfig,
    Loader,
    build_loaders,
    build_loss,
    build_mixup,
    build_model,
    build_optimizer,
    build_scheduler,
    resolve_data,
    resolve_device,
    resolve_lr,
    resolve_model_kwargs,
)
from wsfvit.engine.checkpoint import load_weights, save_atomic
from wsfvit.engine.evaluate import amp_dtype, autocast, evaluate, memory_format
from wsfvit.engine.files import write_text_atomic
from wsfvit.engine.progress import Progress
from wsfvit.errors import UserError


@dataclass
class TrainState:
    """Everything that changes while training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    scaler: GradScaler
    ema: ModelEmaV3 | None
    epoch: int = 0
    num_updates: int = 0
    best_metric: float = -math.inf
    best_epoch: int = -1


@dataclass(frozen=True)
class StepConfig:
    """What an optimizer update needs to know and that does not change.

    Attributes:
        epochs: Number of epochs in all.
        grad_accum_steps: Batches whose gradients make one update; the last update of an epoch may have fewer.
        dtype: Mixed precision, or None.
        mixup_off_epoch: Epoch from which batches are no longer mixed; 0 for never.
    """

    device: torch.device
    layout: torch.memory_format
    dtype: torch.dtype | None
    loss: nn.Module
    mixup: Mixup | None
    mixup_off_epoch: int
    epochs: int
    grad_accum_steps: int
    clip_grad: float | None
    clip_mode: str
    log_interval: int


def run_training(args: argparse.Namespace) -> dict[str, Any]:
    """Runs train.py: builds everything from ``args``, trains, writes the run folder.

    Returns:
        ``best_top1``, ``best_epoch``, ``run_folder`` (Path) and ``rows`` (the lines of summary.csv).

    Raises:
        UserError: a name, value or file that does not fit, or a loss that is not finite.
    """
    args = copy.copy(args)
    args.lr = resolve_lr(args)
    device = resolve_device(args.device)
    random_seed(args.seed, 0)
    drop = {"drop_rate": args.drop} | ({} if args.drop_path is None else {"drop_path_rate": args.drop_path})
    model: Any = build_model(args, **drop)
    if args.initial_checkpoint:
        meta = load_weights(model, args.initial_checkpoint, use_ema=True, trust=args.trust_checkpoint)
        print(f"starting from the {meta['weights']} weights of {args.initial_checkpoint}")
    data_config = resolve_data(args, model)
    train_loader, val_loader = build_loaders(args, data_config, model.num_classes, device)
    state, epochs = build_state(args, model, device, math.ceil(len(train_loader) / args.grad_accum_steps))
    cfg = build_step_config(args, device, model.num_classes, epochs)
    folder = create_run_folder(args, data_config)
    described = describe_run(args, model, data_config)
    write_text_atomic(folder / "args.yaml", yaml.safe_dump(described["args"], sort_keys=False))
    print(
        f"{args.model}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {device}, "
        f"{len(train_loader.dataset)} training and {len(val_loader.dataset)} validation images, "
        f"{'x'.join(map(str, data_config['input_size']))}, lr {args.lr:.3g}, {epochs} epochs\nrun folder: {folder}"
    )
    rows = []
    for state.epoch in range(epochs):
        rows.append(run_epoch(state, train_loader, val_loader, cfg))
        write_text_atomic(folder / "summary.csv", _csv(rows))
        save_epoch(state, folder, described, rows[-1])
    print(
        f"best top-1 {state.best_metric:.2f} % (epoch {state.best_epoch})\n"
        f"best: {folder / 'model_best.pth.tar'}\nlast: {folder / 'last.pth.tar'}\ntable: {folder / 'summary.csv'}"
    )
    return {"best_top1": state.best_metric, "best_epoch": state.best_epoch, "run_folder": folder, "rows": rows}


def build_step_config(args: argparse.Namespace, device: torch.device, num_classes: int, epochs: int) -> StepConfig:
    """Gathers what does not change while training."""
    mixup = build_mixup(args, num_classes)
    return StepConfig(
        device=device,
        layout=memory_format(args),
        dtype=amp_dtype(args),
        loss=build_loss(args, mixed=mixup is not None).to(device),
        mixup=mixup,
        mixup_off_epoch=args.mixup_off_epoch,
        epochs=epochs,
        grad_accum_steps=args.grad_accum_steps,
        clip_grad=args.clip_grad,
        clip_mode=args.clip_mode,
        log_interval=args.log_interval,
    )


def build_state(
    args: argparse.Namespace, model: Any, device: torch.device, updates_per_epoch: int
) -> tuple[TrainState, int]:
    """Moves the model to ``device`` and builds what trains it; also returns the number of epochs to train."""
    model.to(device, memory_format=memory_format(args))
    optimizer = build_optimizer(args, model)
    scheduler, epochs = build_scheduler(args, optimizer, updates_per_epoch)
    # Only float16 can underflow in the backward pass; bfloat16 has float32's range.
    scaler = GradScaler(device.type, enabled=amp_dtype(args) == torch.float16)
    ema = ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup) if args.model_ema else None
    return TrainState(model, optimizer, scheduler, scaler, ema), epochs


def run_epoch(state: TrainState, train_loader: Loader, val_loader: Loader, cfg: StepConfig) -> dict[str, Any]:
    """Trains one epoch, validates, steps the schedule, and returns the epoch's line of summary.csv.

    ``val_loss``, ``top1`` and ``top5`` are those of the moving average where there is one, as in timm.
    """
    started = time.perf_counter()
    trained = train_one_epoch(state, train_loader, cfg)
    judged = state.model if state.ema is None else state.ema.module
    title = f"validate {state.epoch}"
    figures = evaluate(judged, val_loader, cfg.device, cfg.dtype, cfg.layout, title, cfg.log_interval)
    if state.scheduler is not None:
        state.scheduler.step(state.epoch + 1, figures["top1"])
    row = {
        "epoch": state.epoch,
        "train_loss": trained["loss"],
        "val_loss": figures["loss"],
        "top1": figures["top1"],
        "top5": figures["top5"],
        "lr": trained["lr"],
        "seconds": time.perf_counter() - started,
        "images_per_s": trained["images_per_s"],
    }
    print(
        f"epoch {state.epoch}: train loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f}, "
        f"top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %, {row['seconds']:.1f} s, "
        f"{row['images_per_s']:.0f} images/s",
        flush=True,
    )
    return row


def train_one_epoch(state: TrainState, loader: Loader, cfg: StepConfig) -> dict[str, float]:
    """Trains on every batch of ``loader`` once.

    Returns:
        ``loss`` (mean over the images), ``lr`` (of the last update) and ``images_per_s``.

    Raises:
        UserError: the loss is not finite; the model is then not updated with it.
    """
    state.model.train()
    mixing = cfg.mixup is not None and not 0 < cfg.mixup_off_epoch <= state.epoch
    if cfg.mixup is not None:
        cfg.mixup.mixup_enabled = mixing  # off, it still makes the soft labels that the loss expects
    batches, loss_sum, lr = len(loader), 0.0, state.optimizer.param_groups[0]["lr"]
    with Progress(f"epoch {state.epoch + 1}/{cfg.epochs}", batches, cfg.log_interval) as progress:
        for index, (images, labels) in enumerate(loader):
            images = images.to(cfg.device, memory_format=cfg.layout)
            labels = labels.to(cfg.device)
            if cfg.mixup is not None:
                images, labels = cfg.mixup(images, labels)
            # The last group of an epoch can be short; its gradient is the mean over the batches it has.
            group_start = index - index % cfg.grad_accum_steps
            group_size = min(cfg.grad_accum_steps, batches - group_start)
            with autocast(cfg.device, cfg.dtype):
                loss = cfg.loss(state.model(images), labels)
            state.scaler.scale(loss / group_size).backward()
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(
                    f"the training loss became {value} in epoch {state.epoch}, batch {index}; stopped unsaved. "
                    "Try a lower --lr, --clip-grad 1, or --amp-dtype bfloat16"
                )
            if index + 1 == group_start + group_size:
                lr = state.optimizer.param_groups[0]["lr"]
                update(state, cfg)
            loss_sum += value * len(images)
            progress.step(len(images), loss=loss_sum / (progress.images + len(images)), lr=lr)
    return {"loss": loss_sum / progress.images, "lr": lr, "images_per_s": progress.images_per_s}


def update(state: TrainState, cfg: StepConfig) -> None:
    """One optimizer update from the gathered gradients: clip, step, average the weights, step the schedule."""
    if cfg.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        dispatch_clip_grad(state.model.parameters(), cfg.clip_grad, mode=cfg.clip_mode)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.num_updates += 1
    if state.ema is not None:
        state.ema.update(state.model, step=state.num_updates)
    if state.scheduler is not None:
        state.scheduler.step_update(state.num_updates)


def create_run_folder(args: argparse.Namespace, data_config: DataConfig) -> Path:
    """Creates OUTPUT/EXPERIMENT.

    Raises:
        UserError: it already holds a run, or cannot be created.
    """
    height, width = data_config["input_size"][1:]
    size = str(height) if height == width else f"{height}x{width}"
    folder = Path(args.output or "output/train") / (
        args.experiment or "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), args.model.replace("/", "_"), size])
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError(f"run folder '{folder}' cannot be created: {err.strerror}") from err
    if (folder / "last.pth.tar").exists():
        raise UserError(f"'{folder}' already holds a run: choose another --experiment, or remove the folder")
    return folder


def describe_run(args: argparse.Namespace, model: nn.Module, data_config: DataConfig) -> dict[str, Any]:
    """What a checkpoint says about itself, primitives only: arch, model_kwargs, data_config and the arguments."""
    kwargs = resolve_model_kwargs(args) | {"num_classes": model.num_classes, "in_chans": data_config["input_size"][0]}
    return {
        "arch": args.model,
        "model_kwargs": _primitive(kwargs),
        "data_config": _primitive(data_config),
        "args": _primitive({key: value for key, value in vars(args).items() if key != "config"}),
    }


def save_epoch(state: TrainState, folder: Path, described: dict[str, Any], row: dict[str, Any]) -> None:
    """Writes last.pth.tar, and model_best.pth.tar where this epoch's top-1 is the highest so far."""
    best = row["top1"] > state.best_metric
    if best:
        state.best_metric, state.best_epoch = row["top1"], state.epoch
    checkpoint = {
        **described,
        "epoch": state.epoch,
        "metric": row["top1"],
        "num_updates": state.num_updates,
        "state_dict": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }
    if state.ema is not None:
        checkpoint["state_dict_ema"] = state.ema.module.state_dict()
    save_atomic(checkpoint, folder / "last.pth.tar")
    if best:
        save_atomic(checkpoint, folder / "model_best.pth.tar")


def _primitive(value: Any) -> Any:
    """Tuples become lists, so that YAML and JSON give back what was written."""
    if isinstance(value, dict):
        return {key: _primitive(item) for key, item in value.items()}
    return [_primitive(item) for item in value] if isinstance(value, (list, tuple)) else value


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    return text.getvalue()
