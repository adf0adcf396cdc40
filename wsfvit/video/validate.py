"""``python -m wsfvit.video validate``: metrics of a checkpoint and of the baselines on a split."""

import argparse
from pathlib import Path
from typing import Any

from wsfvit.factory.data import loader_options
from wsfvit.utils.distributed import joined_world
from wsfvit.utils.files import check_can_be_made
from wsfvit.utils.precision import amp_dtype
from wsfvit.video.checkpoint import fill_data_options, load_model
from wsfvit.video.data.loader import build_eval_loader
from wsfvit.video.data.splits import open_own, open_split
from wsfvit.video.evaluation import BASELINES, MODEL, VideoResult, describe_data, evaluate, markdown_table, write_report
from wsfvit.video.figures import check_animation
from wsfvit.video.metrics import DEFINITIONS


def run_validation(args: argparse.Namespace) -> VideoResult:
    """Run the validate command, in one process or in those of ``torchrun``.

    Raises:
        UserError: checkpoint or sequences cannot be read, or do not fit each other.
    """
    if args.out:
        check_animation(args.movie)
        check_can_be_made(Path(args.out))
    with joined_world(args.device) as world:
        model, meta = load_model(args.checkpoint, world.device, args.use_ema, args.trust_checkpoint)
        fill_data_options(args, meta.pop("data"))
        config = model.config
        frames = config.frames_in + (args.length or config.frames_out)
        sequences = open_split(args, args.split, frames, config.channels, args.sequences)
        sequences = sequences or open_own(args, args.data, frames, config.channels)
        loader = build_eval_loader(sequences, config.frames_in, loader_options(args, world, args.batch_size))
        keep = args.count if args.out else 0
        predictors = {MODEL: model.predict, **BASELINES}
        result = evaluate(predictors, loader, world, amp_dtype(args), sequences.name, args.log_interval, keep)
        described: dict[str, Any] = {"checkpoint": Path(args.checkpoint).name, **meta, **describe_data(loader, result)}
        world.log(
            f"{sequences.name}, {len(sequences)} sequences, {config.frames_in} frames in, {loader.frames_out} out, "
            f"{result.sequences_per_s:.3g} sequences/s\n{markdown_table(result.metrics)}\n"
            + "\n".join(f"{name}: {text}" for name, text in DEFINITIONS.items())
        )
        if args.out and world.is_main:
            for path in write_report(Path(args.out), args.split, described, result, args.movie):
                print(path)
        return result
