"""The replay command: recompute a non-finite update and find the first module with a non-finite output."""

import argparse
import math
from typing import Any

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from wsfvit.checkpoint.io import apply_state_dict, read_checkpoint
from wsfvit.cli.config import apply_saved, refuse_code
from wsfvit.cli.train import train_parser
from wsfvit.factory.data import build_train_loader, resolve_data
from wsfvit.factory.model import build_train_model
from wsfvit.train.classify import Classification
from wsfvit.train.loop import StepConfig, backward, prepare_batch
from wsfvit.train.nonfinite import DEPTH, module_norms
from wsfvit.train.run_dir import OWN
from wsfvit.train.setup import build_state, build_step_config, set_up_torch
from wsfvit.train.state import TrainState
from wsfvit.utils.distributed import World, resolve_device
from wsfvit.utils.errors import UserError

# What a dump says about its step.
STEP = {"rank": int, "world_size": int, "epoch": int, "batches": list, "indices": list, "losses": list, "norms": dict}


class Watch:
    """Record where values stop being finite in a forward and backward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.batch = 0  # the current one, for the messages
        self.first_output = ""  # description of the first non-finite output
        self.first_gradient = ""  # likewise of the first non-finite gradient of an output, from the loss backwards
        # Largest absolute value in the outputs of each module of the first levels, by name.
        self.largest: dict[str, float] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(self._forward_hook(name))

    def _forward_hook(self, name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            title = f"{name or 'the model itself'} ({type(module).__name__}), batch {self.batch}"
            high = largest(output)
            if name and name.count(".") < DEPTH:
                self.largest[name] = _higher(self.largest.get(name, 0.0), high)
            if not self.first_output and not math.isfinite(high):
                came = largest(inputs)
                finite = f"its inputs are finite, up to {came:.3g}" if math.isfinite(came) else "its inputs are neither"
                self.first_output = f"{title}; {finite}"
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._note_gradient(title, gradient))

        return look

    def _note_gradient(self, title: str, gradient: Tensor) -> None:
        if not self.first_gradient and not gradient.isfinite().all():
            self.first_gradient = title


def run_replay(args: argparse.Namespace) -> dict[str, Any]:
    """Run the replay command: rebuild model and data from the run's arguments and recompute the batches of the update.

    Of several processes only the one that wrote the file is replayed; its gradient is not averaged with the others.
    float16's loss scale is 1 here: what overflows at that scale overflows at a higher one too. A file that is not a
    dump, and data that differs from the run's or is not a local folder or file, raise a ``UserError``.

    Returns:
        ``losses`` (one per batch), ``first_output``, ``first_gradient`` (see ``Watch``; "" for none) and ``norms``
        (see ``module_norms``).
    """
    content = read_checkpoint(args.dump, trust=args.trust_checkpoint)
    step = content.get("bad_step")
    if step is None:
        raise UserError(
            f"'{args.dump}' is not a dump of a non-finite update: those are in the folder bad-steps of a run"
        )
    if not _is_step(step) or not isinstance(content.get("args"), dict) or "state_dict" not in content:
        raise UserError(f"'{args.dump}' is damaged: it does not describe its step")
    if content.get("task", "classification") != "classification":
        raise UserError(f"'{args.dump}' is of a training for {content['task']}: replay supports only classification")
    train_args = _train_arguments(args, content["args"])
    world = World(resolve_device(train_args.device), step["rank"], step["world_size"])
    set_up_torch(train_args, world)
    model = build_train_model(train_args, start=False)
    loader = build_train_loader(train_args, resolve_data(train_args, model), model.num_classes, world)
    # The other processes are not here.
    state, epochs = build_state(Classification(train_args, World(world.device)), model, len(loader))
    state.scaler = GradScaler(world.device.type, enabled=False)
    task = Classification(train_args, world)
    task.build_loss(model.num_classes)
    cfg = build_step_config(task, epochs)
    apply_state_dict(model, content["state_dict"], args.dump)
    state.epoch = step["epoch"]
    try:
        loader.set_position(state.epoch, step["batches"][0])
        indices = [loader.batch_indices(batch) for batch in step["batches"]]
    except (IndexError, OverflowError, TypeError, ValueError):
        indices = []
    if not indices or indices != step["indices"]:
        raise UserError("the batches differ from the run's: replay with the same data (--data-dir DIR)")
    print(
        f"{train_args.model}, epoch {state.epoch}, batches {step['batches'][0]} to {step['batches'][-1]}, process "
        f"{world.rank} of {world.size}, on {world.device.type}"
    )
    watch = Watch(model)
    losses = _compute(state, cfg, loader, step, watch)
    norms = module_norms(model)
    _print_findings(watch, model, norms, step)
    found = {"first_output": watch.first_output, "first_gradient": watch.first_gradient}
    return {"losses": losses, **found, "norms": norms}


def _is_step(step: Any) -> bool:
    """Whether the values in a dump have their types, and its process is one of the run's."""
    if not isinstance(step, dict) or not all(isinstance(step.get(key), kind) for key, kind in STEP.items()):
        return False
    norms = [norm for pair in step["norms"].values() for norm in (pair if isinstance(pair, list) else [""])]
    figures = [*step["losses"], *(norm for norm in norms if norm is not None)]
    return 0 <= step["rank"] < step["world_size"] and all(isinstance(figure, float) for figure in figures)


def _train_arguments(args: argparse.Namespace, saved: dict[str, Any]) -> argparse.Namespace:
    """The run's arguments over today's defaults, without what only the rest of a run needs.

    The dump may come from anybody: it must not name data whose reader starts a process or opens a connection.
    """
    source, parser = f"'{args.dump}'", train_parser()
    given = {"device": args.device, "data_dir": args.data_dir, "workers": args.workers}
    given = {key: value for key, value in given.items() if value is not None}
    uncompiled = {f"torchcompile{each}": None for each in ("", "_mode", "_options", "_memory_budget")}
    unlogged = {"log_wandb": False, "log_trackio": False}
    off = {**uncompiled, **unlogged, "model_ema": False, "sync_bn": False, "dataset_download": False}
    named = {key: value for key, value in saved.items() if key not in OWN | off.keys() | given.keys()}
    refuse_code(named, source, "replay reads only local files")
    apply_saved(parser, named, source)
    return argparse.Namespace(**{**vars(parser.parse_args([])), **off, **given})


def _compute(state: TrainState, cfg: StepConfig, loader: Any, step: dict[str, Any], watch: Watch) -> list[float]:
    """Forward and backward passes of the group, as ``train_one_epoch`` does them; returns the losses."""
    state.forward.train()
    cfg.task.begin_epoch(state.epoch)
    for index, loss, batch in zip(step["batches"], step["losses"], loader, strict=False):
        watch.batch = index
        batch = prepare_batch(batch, index, state.epoch, cfg)
        backward(state, cfg, batch, len(step["batches"]), update_follows=True)
        images = batch[0]
        note = "" if images.isfinite().all() else ", its images are not finite"
        print(f"  batch {index}: {len(images)} images, loss {state.group[-1][0].item():.6g} (then {loss:.6g}){note}")
    return [loss.item() for loss, _ in state.group]


def _print_findings(watch: Watch, model: nn.Module, norms: dict[str, list[float | None]], step: dict[str, Any]) -> None:
    damaged = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if damaged:
        print(f"weights that are not finite: {', '.join(damaged[:5])}{', ...' if len(damaged) > 5 else ''}")
    if watch.first_output:
        print(f"first output that is not finite: {watch.first_output}")
    elif watch.first_gradient:
        print(f"all outputs are finite; first gradient that is not: that of the output of {watch.first_gradient}")
    elif all(math.isfinite(norm) for _, norm in norms.values() if norm is not None):
        print("everything is finite here: it was another process's gradient, or this device computes differently")
    head = ("module", "largest output", "weight norm", "gradient norm", "in the run")
    width = max(map(len, (head[0], *norms)))
    print(f"{head[0]:{width}}" + "".join(f"  {title:>14}" for title in head[1:]))
    for name, (weights, gradient) in norms.items():
        figures = (watch.largest.get(name), weights, gradient, step["norms"].get(name, (None, None))[1])
        cells = ("-" if value is None else f"{value:.4g}" for value in figures)
        print(f"{name:{width}}" + "".join(f"  {cell:>14}" for cell in cells))


def largest(value: Any) -> float:
    """Largest absolute value in a tensor or in nested tuples, lists and dictionaries of them; NaN where one is NaN."""
    result = 0.0
    for tensor in _tensors(value):
        if tensor.is_floating_point() and tensor.numel():
            result = _higher(result, tensor.detach().abs().amax().item())
    return result


def _higher(one: float, two: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(two) else max(one, two)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
