"""Set-up of a training: seeds and kernels, state, resume, schedule, settings of the optimizer update."""

import argparse
import os
from typing import Any

import torch
from timm.utils import ModelEmaV3, random_seed
from torch.amp.grad_scaler import GradScaler

from wsfvit.factory.model import synchronize_batch_norm
from wsfvit.train.loop import StepConfig
from wsfvit.train.run_dir import PLACES, changed_arguments
from wsfvit.train.state import TrainState
from wsfvit.train.task import Task
from wsfvit.utils.compiling import compile_model
from wsfvit.utils.distributed import World, distribute
from wsfvit.utils.errors import UserError
from wsfvit.utils.precision import amp_dtype, memory_format, model_dtype


def set_up_torch(args: argparse.Namespace, world: World) -> None:
    """Seed the start and choose between fast and deterministic kernels, for the whole process."""
    random_seed(args.seed, 0)  # the same weights in all processes
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if world.device.type == "cuda":
        torch.backends.cudnn.deterministic = args.deterministic
        torch.backends.cudnn.benchmark = not args.deterministic
        torch.backends.cuda.matmul.allow_tf32 = True


def check_agreement(args: argparse.Namespace, world: World, counts: dict[str, int]) -> None:
    """Refuse processes that were started with different arguments or see different data.

    Every process raises a ``UserError`` that names the first difference from rank 0, in its arguments or ``counts``.
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


def build_state(task: Task, model: Any, updates_per_epoch: int) -> tuple[TrainState, int]:
    """Move the model to its device and build optimizer, schedule, EMA and wrapping; also return the number of epochs.

    Options that exclude each other raise a ``UserError``.
    """
    args, world = task.args, task.world
    device = world.device
    lower = amp_dtype(args)
    if args.sync_bn and world.size > 1:
        if device.type != "cuda":
            raise UserError(f"--sync-bn needs CUDA devices, not {device.type}: leave it out")
        model = synchronize_batch_norm(model)
    model.to(device, dtype=model_dtype(args), memory_format=memory_format(args))
    optimizer = task.build_optimizer(model)
    scheduler, epochs = task.build_scheduler(optimizer, updates_per_epoch)
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
    wrapped: Any = distribute(model, world, not args.no_ddp_bb) if world.size > 1 else None
    compiled = compile_model(args, wrapped or model, training=True)
    return TrainState(model, optimizer, scheduler, scaler, ema, wrapped if compiled is model else compiled), epochs


def restore(state: TrainState, saved: dict[str, Any], task: Task, described: dict[str, Any]) -> None:
    """Restore the state of an earlier run and log each argument that differs from it.

    A state that does not fit, or stopped in the middle of an epoch of other data or batches, raises a ``UserError``.
    """
    args, world, before = task.args, task.world, saved.get("args", {})
    source, advice = f"--resume {args.resume}: it", "start with --initial-checkpoint instead"
    # torch loads the state of any optimizer into any other, and fails or goes wrong later.
    if "position" in saved and not args.no_resume_opt and before.get("opt", args.opt) != args.opt:
        raise UserError(f"{source} was trained with --opt {before['opt']}; or pass --no-resume-opt")
    try:
        state.load_state_dict(saved, world, optimizer=not args.no_resume_opt)
    except UserError as err:
        raise UserError(f"--resume {args.resume}: {err}") from err
    # Families share their keys, so another model can have loaded the weights.
    if (was := before.get("model")) != (model := described["args"].get("model")) and was is not None:
        raise UserError(f"{source} trained {was}, not {model}: {advice}")
    names, known = described.get("class_names"), saved.get("class_names")
    if names and known and list(names) != list(known):
        raise UserError(f"{source} trained other classes than this data has: {advice}")
    changed = changed_arguments(before, described["args"])
    if changed:
        world.log(f"note: different from the run that is resumed: {', '.join(changed)}")
    geometry = ("images_per_batch", "batches_per_epoch")
    if state.batch and any(saved.get(key) != described[key] for key in geometry):
        was, now = ([str(source.get(key)) for key in geometry] for source in (saved, described))
        raise UserError(
            f"{source} stopped in the middle of an epoch of {was[1]} batches of {was[0]} {task.unit}; here there are "
            f"{now[1]} of {now[0]}. Use the same data and the same --batch-size times processes"
        )
    world.log(f"continuing at epoch {state.epoch}, batch {state.batch}, after {state.num_updates} updates")


def move_schedule(state: TrainState, args: argparse.Namespace, updates_per_epoch: int) -> None:
    """Move the schedule to where the run starts: the resumed position, or ``--start-epoch``."""
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


def build_step_config(task: Task, epochs: int) -> StepConfig:
    """Settings of the optimizer update, from the arguments."""
    args = task.args
    same = ("seed", "grad_accum_steps", "clip_grad", "clip_mode", "log_interval", "max_bad_steps")
    settings = {name: getattr(args, name) for name in same}
    return StepConfig(task.world, task, amp_dtype(args), epochs, synchronize=args.synchronize_step, **settings)
