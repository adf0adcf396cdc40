"""The validate command: evaluate one model, or several in a table."""

import argparse
import copy
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from timm.layers import set_fast_norm
from timm.utils import reparameterize_model

from wsfvit.checkpoint.io import note_on_other_model, saved_data_config
from wsfvit.data import dataset_class_names, dataset_notes, dataset_num_classes
from wsfvit.eval.confusion import Confusion, check_confusion_files, write_confusion
from wsfvit.eval.evaluate import (
    LabelMatcher,
    RealLabels,
    SelectedClasses,
    evaluate_local,
    match_labels,
    read_valid_labels,
    reduce_metrics,
)
from wsfvit.eval.jobs import Job, list_jobs
from wsfvit.factory.data import build_dataset, build_eval_loader, check_class_order, check_classes, resolve_data
from wsfvit.factory.model import fuse_model, load_model, wants_fusion
from wsfvit.models.fuse import can_fuse
from wsfvit.utils.compiling import compile_model
from wsfvit.utils.distributed import World, joined_world
from wsfvit.utils.errors import UserError, first_line, is_out_of_memory
from wsfvit.utils.precision import amp_dtype, memory_format, model_dtype
from wsfvit.utils.tables import ResultsFile, Row, markdown_table

Result = TypeVar("Result")


def run_validation_command(args: argparse.Namespace) -> int:
    """Run validate.py; return the exit code: 1 if one of several models failed, else 0."""
    return int(any("error" in row for row in run_validation(args)))


def run_validation(args: argparse.Namespace) -> list[Row]:
    """Run validate.py in this process, or in one of those that ``torchrun`` started: evaluate, print, write.

    Returns a row per model, highest top-1 first. If there are several, those that failed come last, with ``error``;
    where the only model cannot be evaluated, a ``UserError`` is raised.
    """
    if args.real_labels and args.valid_labels:
        raise UserError("--real-labels and --valid-labels are mutually exclusive: pass one")
    if args.real_labels and args.on_bad_image == "skip":
        raise UserError("--real-labels needs every image, in order: leave out --on-bad-image skip")
    if args.real_labels and args.confusion_matrix:
        raise UserError("--confusion-matrix counts the data's own labels: leave out --real-labels")
    check_confusion_files(args.confusion_matrix)
    amp_dtype(args)  # refuses conflicting flags before anything is read
    results_file = ResultsFile(args.results_file, args.results_format) if args.results_file else None
    if args.fast_norm:
        set_fast_norm()
    rows: list[Row] = []
    with joined_world(args.device) as world:
        several, jobs = list_jobs(args.model or "", args.checkpoint, world.log)
        if several and args.confusion_matrix:
            raise UserError("--confusion-matrix is of one model: name one")
        for number, job in enumerate(jobs, 1):
            if several:
                world.log(f"[{number}/{len(jobs)}] {job.model} {job.checkpoint}".rstrip())
            try:
                row = validate_model(args, job, world, retry=several or args.retry)
                world.log(_describe(row, args, world))
            except Exception as err:  # whatever is wrong with one of several models, the others go on
                if not several:
                    raise
                row = {"model": job.model, "checkpoint": job.checkpoint, "error": _reason(err)}
                world.log(f"failed: {row['error']}")
            rows = sorted([*rows, row], key=lambda row: -row.get("top1", -1.0))
            if results_file is not None and world.is_main:
                results_file.write(rows, single=not several)
        if several:
            world.log(_format_table(rows))
        if results_file is not None:
            world.log(f"result: {results_file.path}")
    return rows


def validate_model(args: argparse.Namespace, job: Job, world: World, retry: bool = False) -> Row:
    """Evaluate one model with all processes; ``retry`` halves the batch size when memory runs out."""
    args = copy.copy(args)
    args.model, args.checkpoint = job
    while True:
        try:
            sums, row = _fail_together(world, lambda: _evaluate_local(args, world))
            break
        except torch.OutOfMemoryError as err:
            if not retry or args.batch_size == 1:
                advice = "" if args.batch_size == 1 else ": pass a smaller one, or --retry"
                raise UserError(f"the memory is too small for --batch-size {args.batch_size}{advice}") from err
        args.batch_size //= 2
        world.log(f"out of memory, retrying with --batch-size {args.batch_size}")
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
    row["left_out"] = sum(world.gather(row["left_out"]))
    if (confusion := row.pop("confusion")) is not None:
        counts = world.sum(confusion[0])
        if world.is_main:
            write_confusion(counts, confusion[1], args.confusion_matrix)
        world.log(f"confusion matrix: {', '.join(args.confusion_matrix)}")
    source = {key: row.pop(key) for key in ("model", "checkpoint", "weights", "epoch", "dataset", "data", "split")}
    return source | reduce_metrics(sums, world) | row


def _fail_together(world: World, step: Callable[[], Result]) -> Result:
    """Run a step without communication in every process; if it fails in one, it fails in all.

    The error is that of the step (torch.OutOfMemoryError if memory ran out, also on a CPU), elsewhere a ``UserError``.
    """
    error: Exception | None = None
    try:
        result = step()
    except Exception as err:
        # The frames hold the model and its activations, and a smaller batch needs that memory.
        traceback.clear_frames(err.__traceback__)
        error = err
    reports = world.gather(None if error is None else (is_out_of_memory(error), _reason(error)))
    failed = [(rank, *report) for rank, report in enumerate(reports) if report]
    if failed and all(memory for _, memory, _ in failed):
        raise torch.OutOfMemoryError(failed[0][2]) from error
    if error is not None:
        raise error
    if failed:
        raise UserError(f"process {failed[0][0]}: {failed[0][2]}")
    return result


def _evaluate_local(args: argparse.Namespace, world: World) -> tuple[torch.Tensor, Row]:
    """Load the model and evaluate it on this process's images: the sums, and everything else about the result."""
    device = world.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    args, model, meta = load_model(args, pretrained=True)
    if note := note_on_other_model(args, meta):
        world.log(note)
    data_config = resolve_data(args, model, saved_data_config(args.model, meta), test_size=not args.use_train_size)
    if args.crop_border_pixels:
        data_config["crop_border_pixels"] = args.crop_border_pixels
    params = sum(parameter.numel() for parameter in model.parameters())
    classes = model.num_classes
    if args.reparam:
        model = reparameterize_model(model)
    plain = not args.torchcompile and amp_dtype(args) is None and model_dtype(args) == torch.float32
    args = argparse.Namespace(**vars(args) | {"fuse": wants_fusion(args, model, device, plain)})
    if args.fuse:  # before the weights may be rounded
        model = fuse_model(args.model, model)
    elif args.torchcompile and can_fuse(model):
        world.log("note: add --fuse, which folds the BatchNorms that compiled code computes otherwise")
    model = model.to(device, dtype=model_dtype(args), memory_format=memory_format(args))
    if args.valid_labels:
        selected = read_valid_labels(args.valid_labels, classes)
        model, classes = SelectedClasses(model, selected).to(device), len(selected)
    mode = {"batch_size": args.batch_size, "num_classes": classes}
    dataset = build_dataset(args, args.split, args.num_samples, data_config["input_size"][0], **mode)
    for text in dataset_notes(dataset):
        world.log(f"note: {text}")
    check_classes(dataset, classes)
    names, saved_names = dataset_class_names(dataset), meta.get("class_names")
    if not args.valid_labels and not args.labels_by_position:
        check_class_order(names, saved_names, f"checkpoint '{args.checkpoint}'", "--labels-by-position")
    if not args.valid_labels and (found := dataset_num_classes(dataset)) is not None and found < classes:
        note = f"the data has {found} classes, evaluated as the first of the model's {classes}; see --valid-labels"
        world.log(f"note: {note}")
    loader = build_eval_loader(args, dataset, data_config, args.batch_size, world, classes)
    matcher: LabelMatcher = match_labels
    if args.real_labels:
        matcher = RealLabels(args.real_labels, dataset, range(world.rank, len(dataset), world.size))
    confusion = None
    if args.confusion_matrix:
        names = names or saved_names or []
        confusion = Confusion(classes), [*names, *map(str, range(len(names), classes))]
        matcher = confusion[0]
    started = time.perf_counter()
    model, precision = compile_model(args, model), (amp_dtype(args), memory_format(args))
    sums, images_per_s = evaluate_local(model, loader, world, *precision, interval=args.log_freq, matcher=matcher)
    speed = {
        "num_classes": classes,
        "param_count": params / 1e6,
        "images_per_s": images_per_s,
        "seconds": time.perf_counter() - started,
        "left_out": len(loader.bad_images),
        "confusion": confusion and (confusion[0].counts, confusion[1]),
    }
    if device.type == "cuda":
        speed["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return sums, _describe_source(args, meta, data_config) | speed


def _describe_source(args: argparse.Namespace, meta: dict[str, Any], data_config: dict[str, Any]) -> Row:
    forms = {"reparameterized": args.reparam, "fused": args.fuse, "compiled": args.torchcompile}
    setting = {key: list(value) if isinstance(value, tuple) else value for key, value in data_config.items()}
    return {
        "model": args.model,
        "checkpoint": str(args.checkpoint),
        "weights": meta["weights"],
        "epoch": meta.get("epoch"),
        "dataset": args.dataset,
        "data": args.data_dir or args.data,
        "split": args.split,
        "batch_size": args.batch_size,
        "form": ", ".join(name for name, on in forms.items() if on) or "plain",
        "precision": f"amp {args.amp_dtype}" if args.amp else str(model_dtype(args)).removeprefix("torch."),
        **setting,
    }


def _describe(row: Row, args: argparse.Namespace, world: World) -> str:
    """The setting, then the metrics."""
    note = ""
    if args.use_ema and row["weights"] == "raw":
        note = "note: --use-ema: the checkpoint has no EMA weights; the raw weights were evaluated\n"
    memory = f", {row['peak_memory_gb']:.2f} GB" if "peak_memory_gb" in row else ""
    left_out = f" ({row['left_out']} more were unreadable and skipped)" if row["left_out"] else ""
    size = "x".join(map(str, row["input_size"]))
    top5 = f"top-5 {row['top5']:.2f} %, " if row["num_classes"] > 5 else ""
    form = "" if row["form"] == "plain" else f", {row['form']},"
    return note + (
        f"{row['model']}, {row['weights']} weights {'of ' if row['checkpoint'] else ''}{row['checkpoint']}\n"
        f"  {size}, crop {row['crop_pct']} {row['crop_mode']}, {row['interpolation']}, "
        f"mean {row['mean']}, std {row['std']}, {row['precision']}{form} on {world.size} x {world.device.type}\n"
        f"  {row['images']} images{left_out}: top-1 {row['top1']:.2f} %, {top5}"
        f"loss {row['loss']:.4f}, {row['images_per_s']:.0f} images/s{memory}"
    )


def _format_table(rows: list[Row]) -> str:
    """Markdown table of results and failures."""
    head = ("model", "checkpoint", "top-1 (%)", "top-5 (%)", "loss", "parameters (M)", "images/s")
    lines = []
    for row in rows:
        figures = [row.get("error", "").replace("|", "/"), *("-",) * 4]
        if "error" not in row:
            figures = [f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.4f}", f"{row['param_count']:.2f}"]
            figures.append(f"{row['images_per_s']:.0f}")
        lines.append((row["model"] or "-", row["checkpoint"] or "-", *figures))
    return markdown_table(head, lines, aligned=False)


def _reason(err: Exception) -> str:
    return first_line(err) if isinstance(err, UserError) else f"{type(err).__name__}: {first_line(err)}"
