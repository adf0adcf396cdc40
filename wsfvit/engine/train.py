"""The train command: builds everything from the arguments, continues what is to be continued, and runs."""

import argparse
import copy
import importlib
import math
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.utils import ModelEmaV3, random_seed
from torch import nn
from torch.amp.grad_scaler import GradScaler

from wsfvit.data import dataset_class_names
from wsfvit.engine.build import Loader, build_train_loader, build_val_loader, check_class_order, resolve_data
from wsfvit.engine.distributed import World, join_world, leave_world
from wsfvit.engine.dry_run import FirstBatches, temporary_output
from wsfvit.engine.evaluate import amp_dtype, memory_format, model_dtype
from wsfvit.engine.files import write_text_atomic
from wsfvit.engine.logs import RunLog
from wsfvit.engine.loop import StepConfig
from wsfvit.engine.model import build_train_model, compile_model
from wsfvit.engine.recipe import (
    build_erasing,
    build_loss,
    build_mixup,
    build_optimizer,
    build_scheduler,
    resolve_grad_accum_steps,
    resolve_lr,
)
from wsfvit.engine.run import Run
from wsfvit.engine.run_folder import changed_arguments, create_folder, describe_run, read_resumed, run_folder
from wsfvit.engine.signals import StopRequests
from wsfvit.engine.state import TrainState
from wsfvit.engine.store import CheckpointStore
from wsfvit.errors import UserError


def run_training(args: argparse.Namespace) -> dict[str, Any]:
    """Runs train.py, in this process or as one of those that ``torchrun`` started.

    Returns:
        ``rows`` (the lines of summary.csv), ``best`` (the best of them, or None), ``run_folder`` (Path) and
        ``finished`` (False after a request to stop; the state is saved then).

    Raises:
        UserError: a name, value or file that does not fit, or ``--max-bad-steps`` updates that are not finite.
    """
    args = copy.copy(args)
    for name in args.device_modules or ():
        try:
            importlib.import_module(name)
        except ImportError as err:
            raise UserError(f"--device-modules {name}: {err}") from err
    world = join_world(args.device)
    try:
        with StopRequests() as stop, temporary_output(args, world) if args.dry_run else nullcontext():
            return _train(args, world, stop)
    finally:
        leave_world()


def _train(args: argparse.Namespace, world: World, stop: StopRequests) -> dict[str, Any]:
    args.grad_accum_steps = resolve_grad_accum_steps(args, world.size)
    args.lr = resolve_lr(args, world.size)
    set_up_torch(args, world)
    folder = run_folder(args, world)
    store = CheckpointStore(folder, keep=args.checkpoint_hist, lower_is_better=args.eval_metric == "loss")
    resumed = read_resumed(args, store, world)
    model = build_train_model(args, start=resumed is None, say=world.say)
    data_config = resolve_data(args, model)
    train_loader: Loader = build_train_loader(args, data_config, model.num_classes, world)
    val_loader: Loader = build_val_loader(args, data_config, model.num_classes, world)
    class_names = dataset_class_names(train_loader.dataset)
    check_class_order(dataset_class_names(val_loader.dataset), class_names, "the training data")
    if args.dry_run:
        train_loader, val_loader = FirstBatches(train_loader, args.grad_accum_steps), FirstBatches(val_loader, 1)
    check_agreement(args, world, {"training batches": len(train_loader), "classes": model.num_classes})
    updates_per_epoch = math.ceil(len(train_loader) / args.grad_accum_steps)
    state, epochs = build_state(args, model, world, updates_per_epoch)
    described = describe_run(args, model, data_config)
    described |= {"class_names": class_names} if class_names else {}
    described |= {"images_per_batch": args.batch_size * world.size, "batches_per_epoch": len(train_loader)}
    if resumed is not None:
        continue_from(resumed, state, args, described, world)
    move_schedule(state, args, updates_per_epoch)
    if world.is_main:
        create_folder(folder, continued=resumed is not None)
        write_text_atomic(folder / "args.yaml", yaml.safe_dump(described["args"], sort_keys=False))
    world.say(
        f"{args.model}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
        f"{world.size} x {world.device.type}, {args.batch_size * world.size * args.grad_accum_steps} images an update, "
        f"{len(train_loader)} training and {len(val_loader)} validation batches, "
        f"{'x'.join(map(str, data_config['input_size']))}, lr {args.lr:.3g}, {epochs} epochs\nrun folder: {folder}"
    )
    cfg = build_step_config(args, world, model.num_classes, 1 if args.dry_run else epochs)
    run = Run(
        state,
        cfg,
        train_loader,
        val_loader,
        described,
        folder,
        store=store if world.is_main else None,
        log=RunLog(folder, args, described["args"], state.num_updates) if world.is_main else None,
        stop=stop,
        metric="val_loss" if args.eval_metric == "loss" else args.eval_metric,
        recovery_interval=args.recovery_interval,
        dist_bn=args.dist_bn,
        mirrored=args.tta == 2,
    )
    try:
        finished = run.train()
    finally:
        run.close()
    world.say(_last_words(run, folder, finished, args.dry_run))
    return {"best": run.best, "run_folder": folder, "rows": state.rows, "finished": finished}


def set_up_torch(args: argparse.Namespace, world: World) -> None:
    """Seeds the start and chooses between fast and repeatable kernels, for the whole process."""
    random_seed(args.seed, 0)  # the same weights in all processes
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if world.device.type == "cuda":
        torch.backends.cudnn.deterministic = args.deterministic
        torch.backends.cudnn.benchmark = not args.deterministic
        torch.backends.cuda.matmul.allow_tf32 = True


def check_agreement(args: argparse.Namespace, world: World, counts: dict[str, int]) -> None:
    """Ends a run whose processes were started with different arguments or see different data.

    Args:
        args: This process's arguments.
        world: The processes.
        counts: What must be equal besides the arguments, by name.

    Raises:
        UserError: in every process, naming the first that differs from rank 0.
    """
    # Machines may keep the data, the YAML file and the output in different places.
    places = ("config", "data", "data_dir", "output")
    mine = {"--" + key.replace("_", "-"): value for key, value in vars(args).items() if key not in places} | counts
    every = world.gather(mine)
    for rank, theirs in enumerate(every):
        for name, value in theirs.items():
            if value != every[0][name]:
                raise UserError(
                    f"the processes do not agree: rank 0 has {name} {every[0][name]}, rank {rank} {value}; start all "
                    "of them with the same arguments and the same data"
                )


def build_state(args: argparse.Namespace, model: Any, world: World, updates_per_epoch: int) -> tuple[TrainState, int]:
    """Moves the model to its device and builds what trains it; also returns the number of epochs to train.

    Raises:
        UserError: options that exclude each other.
    """
    device = world.device
    lower = amp_dtype(args)
    if args.sync_bn and world.size > 1:
        if device.type != "cuda":
            raise UserError(f"--sync-bn works on CUDA devices alone, not on {device.type}: leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device, dtype=model_dtype(args), memory_format=memory_format(args))
    optimizer = build_optimizer(args, model)
    scheduler, epochs = build_scheduler(args, optimizer, updates_per_epoch)
    # Only float16 can underflow in the backward pass; bfloat16 has float32's range.
    scaler = GradScaler(device.type, enabled=lower == torch.float16)
    ema = None
    if args.model_ema:
        ema = ModelEmaV3(
            model,
            decay=args.model_ema_decay,
            use_warmup=args.model_ema_warmup,
            device="cpu" if args.model_ema_force_cpu else None,
            # Steps of (1 - decay) are lost in a lower precision's rounding.
            dtype=torch.float32,
        )
    wrapped = wrap_model(args, model, world)
    return TrainState(model, optimizer, scheduler, scaler, ema, wrapped), epochs


def wrap_model(args: argparse.Namespace, model: nn.Module, world: World) -> nn.Module | None:
    """The model as the loop calls it: distributed where there are several processes, compiled if asked for."""
    wrapped: Any = None
    if world.size > 1:
        ids = [world.device] if world.device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=not args.no_ddp_bb)
    compiled = compile_model(args, wrapped or model)
    return wrapped if compiled is model else compiled


def continue_from(
    saved: dict[str, Any], state: TrainState, args: argparse.Namespace, described: dict[str, Any], world: World
) -> None:
    """Takes over the state of an earlier run, and says what is not as it was.

    Raises:
        UserError: the state does not fit, or stopped in the middle of an epoch of other data or batches.
    """
    before = saved.get("args", {})
    # torch loads the state of any optimizer into any other, and fails or goes wrong later.
    if not args.no_resume_opt and before.get("opt", args.opt) != args.opt:
        raise UserError(f"--resume {args.resume}: it was trained with --opt {before['opt']}; or pass --no-resume-opt")
    try:
        state.load_state_dict(saved, world, optimizer=not args.no_resume_opt)
    except UserError as err:
        raise UserError(f"--resume {args.resume}: {err}") from err
    changed = changed_arguments(before, described["args"])
    if changed:
        world.say(f"note: not as in the run that is resumed: {', '.join(changed)}")
    geometry = ("images_per_batch", "batches_per_epoch")
    if state.batch and any(saved.get(key) != described[key] for key in geometry):
        was, now = ([str(source.get(key)) for key in geometry] for source in (saved, described))
        raise UserError(
            f"--resume {args.resume}: it stopped in the middle of an epoch of {was[1]} batches of {was[0]} images; "
            f"here there are {now[1]} of {now[0]}. Use the same data and the same --batch-size times processes"
        )
    world.say(f"continuing at epoch {state.epoch}, batch {state.batch}, after {state.num_updates} updates")


def move_schedule(state: TrainState, args: argparse.Namespace, updates_per_epoch: int) -> None:
    """Brings the schedule to where the run starts: the resumed position, or ``--start-epoch``."""
    if args.start_epoch is not None:
        state.begin_epoch(args.start_epoch)
        state.rows = [row for row in state.rows if row["epoch"] < args.start_epoch]
        state.num_updates = args.start_epoch * updates_per_epoch
    if state.scheduler is None:
        return
    if args.sched_on_updates and state.num_updates:
        state.scheduler.step_update(state.num_updates)
    # A plateau's rate follows the metrics so far and came with the optimizer's state.
    elif not args.sched_on_updates and state.epoch and args.sched != "plateau":
        state.scheduler.step(state.epoch)


def build_step_config(args: argparse.Namespace, world: World, num_classes: int, epochs: int) -> StepConfig:
    """Gathers what does not change while training."""
    mixup = build_mixup(args, num_classes)
    return StepConfig(
        world=world,
        layout=memory_format(args),
        amp_dtype=amp_dtype(args),
        model_dtype=model_dtype(args),
        loss=build_loss(args, mixed=mixup is not None).to(world.device),
        erasing=build_erasing(args, world.device),
        mixup=mixup,
        mixup_off_epoch=args.mixup_off_epoch,
        epochs=epochs,
        seed=args.seed,
        grad_accum_steps=args.grad_accum_steps,
        clip_grad=args.clip_grad,
        clip_mode=args.clip_mode,
        synchronize=args.synchronize_step,
        log_interval=args.log_interval,
        max_bad_steps=args.max_bad_steps,
    )


def _last_words(run: Run, folder: Path, finished: bool, dry: bool) -> str:
    state = run.state
    if dry and finished:
        row = state.rows[-1]
        return (
            f"dry run: one update (loss {row['train_loss']:.4f}) and one validation batch in {row['seconds']:.1f} s, ok"
        )
    if not finished:
        return f"stopped as asked, saved at epoch {state.epoch}, batch {state.batch}: start again with --resume auto"
    if run.best is None:
        return f"nothing to train: --epochs {run.cfg.epochs} are done already"
    return (
        f"best {run.metric} {run.best[run.metric]:.2f} (epoch {run.best['epoch']})\n"
        f"best: {folder / 'model_best.pth.tar'}\nlast: {folder / 'last.pth.tar'}\ntable: {folder / 'summary.csv'}"
    )
