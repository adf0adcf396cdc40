"""What every training does, whatever is learnt: joins the processes, resumes, builds the state, runs, reports."""

import argparse
import copy
import importlib
import math
import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, random_seed
from torch import nn
from torch.amp.grad_scaler import GradScaler

from wsfvit.checkpoint.store import CheckpointStore
from wsfvit.factory.data import Loader
from wsfvit.factory.model import synchronize_batch_norm
from wsfvit.factory.recipe import build_optimizer, build_scheduler, resolve_grad_accum_steps, resolve_lr
from wsfvit.train.dry_run import FirstBatches, temporary_output
from wsfvit.train.loggers import RunLog
from wsfvit.train.loop import StepConfig
from wsfvit.train.run import Run
from wsfvit.train.run_dir import (
    PLACES,
    changed_arguments,
    claim_folder,
    create_folder,
    primitive,
    read_resumed,
    run_folder,
)
from wsfvit.train.signals import StopRequests
from wsfvit.train.state import TrainState
from wsfvit.train.task import Task
from wsfvit.utils.compiling import compile_model
from wsfvit.utils.distributed import World, distribute, joined_world
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import write_text_atomic
from wsfvit.utils.precision import amp_dtype, memory_format, model_dtype

BuildOptimizer = Callable[[argparse.Namespace, nn.Module], torch.optim.Optimizer]
BuildScheduler = Callable[[argparse.Namespace, torch.optim.Optimizer, int], tuple[Scheduler | None, int]]


@dataclass
class Plan:
    """What is to be trained, on which data, and what an epoch is judged by.

    Attributes:
        title: What it is, in a few words.
        model: On the CPU, in float32, with the weights to start from.
        task: How a batch becomes a loss.
        train_loader: Yields the batches that ``task.prepare`` takes; has ``len`` (batches of an epoch),
            ``set_position(epoch, batch)``, ``batch_indices(batch)`` and ``bad_images``, as ``wsfvit.data.TrainLoader``.
        val_loader: Yields batches; has ``len`` and ``bad_images``.
        validate: Called with a model in eval mode, the validation loader and a title for the progress, in every
            process; returns the epoch's figures, columns of summary.csv, the same in every process.
        described: What a checkpoint needs to say to be used without the run, primitives only; ``task`` is the name of
            the task.
        counts: Numbers that must be equal in all processes, by name.
        optimizer_of: Builds the optimizer from arguments and model.
        scheduler_of: Builds the schedule and counts its epochs, from arguments, optimizer and updates per epoch.
        after_epoch: Called by the main process after an epoch's figures are logged, with the log and the number of
            updates so far, for pictures and files.
        at_end: Called by every process, with the run, when all epochs are done.
    """

    title: str
    model: nn.Module
    task: Task
    train_loader: Loader
    val_loader: Loader
    validate: Callable[[nn.Module, Loader, str], dict[str, float]]
    described: dict[str, Any]
    counts: dict[str, int]
    optimizer_of: BuildOptimizer = build_optimizer
    scheduler_of: BuildScheduler = build_scheduler
    after_epoch: Callable[[RunLog, int], None] | None = None
    at_end: Callable[[Run], None] | None = None


# From the arguments, the processes and whether the run starts anew (and not from a saved state).
BuildPlan = Callable[[argparse.Namespace, World, bool], Plan]


def run_session(
    args: argparse.Namespace, build: BuildPlan, name: str, metric: str, lower_is_better: bool = False
) -> dict[str, Any]:
    """Trains, in this process or as one of those that ``torchrun`` started.

    Args:
        args: Arguments of a training command: at least those that ``engine.args.run`` adds.
        build: Builds what is trained.
        name: Names the run folder where ``--experiment`` does not.
        metric: Column of summary.csv that the best checkpoint is best at.
        lower_is_better: It is best where it is lowest.

    Returns:
        ``rows`` (the lines of summary.csv), ``best`` (the best of them, or None), ``run_folder`` (Path) and
        ``finished`` (False after a request to stop; the state is saved then).

    Raises:
        UserError: a name, value or file that does not fit, or ``--max-bad-steps`` updates that are not finite.
    """
    args = copy.copy(args)
    for module in args.device_modules or ():
        try:
            importlib.import_module(module)
        except ImportError as err:
            raise UserError(f"--device-modules {module}: {err}") from err
    with joined_world(args.device) as world:
        with StopRequests() as stop, temporary_output(args, world) if args.dry_run else nullcontext():
            folder = run_folder(args, world, name)
            store = CheckpointStore(folder, keep=args.checkpoint_hist, lower_is_better=lower_is_better)
            with ExitStack() as claim:
                return _train(args, build, world, stop, store, metric, claim)


def _train(
    args: argparse.Namespace,
    build: BuildPlan,
    world: World,
    stop: StopRequests,
    store: CheckpointStore,
    metric: str,
    claim: ExitStack,
) -> dict[str, Any]:
    args.grad_accum_steps = resolve_grad_accum_steps(args, world.size)
    args.lr = resolve_lr(args, world.size)
    set_up_torch(args, world)
    folder = store.folder
    claim_folder(folder, world, claim)
    resumed = read_resumed(args, store, world)
    plan = build(args, world, resumed is None)
    train_loader, val_loader, unit = plan.train_loader, plan.val_loader, plan.task.unit
    if args.dry_run:
        train_loader, val_loader = FirstBatches(train_loader, args.grad_accum_steps), FirstBatches(val_loader, 1)
    check_agreement(args, world, {"training batches": len(train_loader), **plan.counts})
    updates_per_epoch = math.ceil(len(train_loader) / args.grad_accum_steps)
    state, epochs = build_state(args, plan.model, world, updates_per_epoch, plan.optimizer_of, plan.scheduler_of)
    geometry = {"images_per_batch": args.batch_size * world.size, "batches_per_epoch": len(train_loader)}
    arguments = primitive({key: value for key, value in vars(args).items() if key != "config"})
    described = primitive(plan.described) | {"args": arguments} | geometry
    if resumed is not None:
        continue_from(resumed, state, args, described, world, unit)
    move_schedule(state, args, updates_per_epoch)
    if state.epoch >= epochs:
        world.log(f"nothing left to train: all {epochs} epochs are done; more need a higher --epochs")
    if world.is_main:
        create_folder(folder, continued=resumed is not None)
    claim_folder(folder, world, claim)  # of a new run: only now is there a folder
    if world.is_main:
        write_text_atomic(folder / "args.yaml", yaml.safe_dump(arguments, sort_keys=False))
    world.log(
        f"{plan.title}: {sum(p.numel() for p in plan.model.parameters()) / 1e6:.2f} M parameters, {world.size} x "
        f"{world.device.type}, {args.batch_size * world.size * args.grad_accum_steps} {unit} an update, "
        f"{len(train_loader)} training and {len(val_loader)} validation batches, lr {args.lr:.3g}, {epochs} epochs\n"
        f"run folder: {folder}"
    )
    run = Run(
        state,
        build_step_config(args, world, plan.task, 1 if args.dry_run else epochs),
        train_loader,
        val_loader,
        plan.validate,
        described,
        folder,
        store=store if world.is_main else None,
        log=RunLog(folder, args, arguments, state.num_updates) if world.is_main else None,
        stop=stop,
        metric=metric,
        lower_is_better=store.lower_is_better,
        recovery_interval=args.recovery_interval,
        dist_bn=args.dist_bn,
        eval_interval=args.eval_interval,
        after_epoch=plan.after_epoch,
    )
    try:
        finished = run.train()
        if finished and plan.at_end is not None:
            plan.at_end(run)
    finally:
        run.close()
    world.log(_last_words(run, folder, finished, args.dry_run))
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
    mine = {"--" + key.replace("_", "-"): value for key, value in vars(args).items() if key not in PLACES} | counts
    every = world.gather(mine)
    for rank, theirs in enumerate(every):
        for name, value in theirs.items():
            if value != every[0][name]:
                raise UserError(
                    f"the processes do not agree: rank 0 has {name} {every[0][name]}, rank {rank} {value}; start all "
                    "of them with the same arguments and the same data"
                )


def build_state(
    args: argparse.Namespace,
    model: Any,
    world: World,
    updates_per_epoch: int,
    optimizer_of: BuildOptimizer = build_optimizer,
    scheduler_of: BuildScheduler = build_scheduler,
) -> tuple[TrainState, int]:
    """Moves the model to its device and builds what trains it; also returns the number of epochs to train.

    Raises:
        UserError: options that exclude each other.
    """
    device = world.device
    lower = amp_dtype(args)
    if args.sync_bn and world.size > 1:
        if device.type != "cuda":
            raise UserError(f"--sync-bn works on CUDA devices alone, not on {device.type}: leave it out")
        model = synchronize_batch_norm(model)
    model.to(device, dtype=model_dtype(args), memory_format=memory_format(args))
    optimizer = optimizer_of(args, model)
    scheduler, epochs = scheduler_of(args, optimizer, updates_per_epoch)
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
    wrapped: Any = distribute(model, world, not args.no_ddp_bb) if world.size > 1 else None
    compiled = compile_model(args, wrapped or model, training=True)
    return wrapped if compiled is model else compiled


def continue_from(
    saved: dict[str, Any],
    state: TrainState,
    args: argparse.Namespace,
    described: dict[str, Any],
    world: World,
    unit: str = "images",
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
    # Families share their keys, so another model can have loaded the weights.
    if (was := before.get("model")) != (model := described["args"].get("model")) and was is not None:
        raise UserError(
            f"--resume {args.resume}: it trained {was}, not {model}: start with --initial-checkpoint instead"
        )
    changed = changed_arguments(before, described["args"])
    if changed:
        world.log(f"note: not as in the run that is resumed: {', '.join(changed)}")
    geometry = ("images_per_batch", "batches_per_epoch")
    if state.batch and any(saved.get(key) != described[key] for key in geometry):
        was, now = ([str(source.get(key)) for key in geometry] for source in (saved, described))
        raise UserError(
            f"--resume {args.resume}: it stopped in the middle of an epoch of {was[1]} batches of {was[0]} {unit}; "
            f"here there are {now[1]} of {now[0]}. Use the same data and the same --batch-size times processes"
        )
    world.log(f"continuing at epoch {state.epoch}, batch {state.batch}, after {state.num_updates} updates")


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


def build_step_config(args: argparse.Namespace, world: World, task: Task, epochs: int) -> StepConfig:
    """Gathers what does not change while training."""
    return StepConfig(
        world=world,
        task=task,
        amp_dtype=amp_dtype(args),
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
        return f"no epoch has been validated in '{folder}'"
    return (
        f"best {run.metric} {run.best[run.metric]:.4g} (epoch {run.best['epoch']})\n"
        f"best: {folder / 'model_best.pth.tar'}\nlast: {folder / 'last.pth.tar'}\ntable: {folder / 'summary.csv'}"
    )
