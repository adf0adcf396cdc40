"""``python -m wsfvit.video flops``: parameters and MACs of one forward pass of the video model, part by part."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from wsfvit.analysis.flop_counter import Complexity, count_complexity
from wsfvit.analysis.flops import describe_counting
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import make_folder, write_text_atomic
from wsfvit.utils.tables import markdown_table
from wsfvit.video.args import build_config
from wsfvit.video.model.simvp import SimVP, SimVPConfig

# As printed in the WSF-ViT release of February 2026: parameters (M) and "FLOPs" (G, in fact MACs).
PUBLISHED = (37.6, 14.0)
# MACs (G) of the release's own code at the published setting, counted with fvcore.
RECOUNTED = {
    "": 14.002,
    "encoder": 0.964,
    "decoder": 3.810,
    "translator.0.block.conv": 0.849,
    "translator.0.block.attn_local": 1.281,
    "translator.0.block.attn_inter": 2.108,
    "translator.0.block.attn_global": 1.281,
    "translator.0.proj": 0.084,
    "translator.1.block.conv": 0.545,
    "translator.1.block.attn_local": 0.823,
    "translator.1.block.attn_inter": 1.350,
    "translator.1.block.attn_global": 0.823,
    "translator.1.proj": 0.084,
}
BLOCK_PARTS = ("block.conv", "block.attn_local", "block.attn_inter", "block.attn_global", "proj")


def run_flops(args: argparse.Namespace) -> None:
    """Run the flops command: print the table, or write it to the files of ``--output``.

    Raises:
        UserError: options that do not fit each other, or a file that cannot be written.
    """
    writers = {".csv": _csv, ".md": _markdown}
    paths = list(map(Path, args.output))
    for path in paths:
        if path.suffix not in writers:
            raise UserError(f"--output {path}: the table is written as .csv or .md")
    config = build_config(args)
    shape = (args.batch_size, config.frames_in, config.channels, *args.size)
    found = count_video_model(config, shape)
    if not paths:
        print(_markdown(config, shape, found))
    for path in paths:
        make_folder(path.parent)
        write_text_atomic(path, writers[path.suffix](config, shape, found) + "\n")
        print(f"table: {path}")


def count_video_model(config: SimVPConfig, shape: tuple[int, ...]) -> Complexity:
    """Complexity of one forward pass on frames of `shape` (B, frames_in, C, H, W), on the meta device."""
    with torch.device("meta"):
        return count_complexity(SimVP(config), torch.zeros(shape))


def part_names(config: SimVPConfig) -> list[str]:
    """Names of the modules in a table of the model, in the order in which they run."""
    blocks = [f"translator.{i}.{part}" for i in range(config.n_t) for part in BLOCK_PARTS]
    return ["front", "encoder", *blocks, "decoder"]


def _rows(config: SimVPConfig, shape: tuple[int, ...], found: Complexity) -> Iterator[tuple[str, int, int, str]]:
    """Part, parameters, MACs, and recounted MACs (G) for the published setting."""
    published = shape == (1, 10, 1, 64, 64) and config == SimVPConfig(drop_path=config.drop_path)
    costs = {module.name: module for module in found.modules}
    for name in (*part_names(config), ""):
        recounted = f"{RECOUNTED[name]:.3f}" if published and name in RECOUNTED else ""
        yield name or "total", costs[name].params, costs[name].cost.macs, recounted


def _csv(config: SimVPConfig, shape: tuple[int, ...], found: Complexity) -> str:
    rows = (",".join(map(str, row)) for row in _rows(config, shape, found))
    return "\n".join(["part,params,macs,recounted_macs_g", *rows])


def _markdown(config: SimVPConfig, shape: tuple[int, ...], found: Complexity) -> str:
    header = ("part", "parameters", "MACs (G)", "share (%)", "recounted MACs (G)")
    rows = [
        (name, f"{params:,}", f"{macs / 1e9:.3f}", f"{100 * macs / found.macs:.1f}", recounted or "-")
        for name, params, macs, recounted in _rows(config, shape, found)
    ]
    return "\n".join(
        [
            f"SimVP with a WSF-ViT translator ({config.family} family), input {'x'.join(map(str, shape))}, "
            f"{config.frames_out} frames out.\n",
            markdown_table(header, rows, aligned=False),
            f"\nPublished: {PUBLISHED[0]} M parameters and {PUBLISHED[1]} G at 1x10x1x64x64. Recounted: the MACs of "
            "the release's own code, counted with fvcore.\n",
            *describe_counting(found.operators),
        ]
    )
