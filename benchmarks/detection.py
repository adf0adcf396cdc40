"""Time whole detectors, training step and inference, against torchvision's own Mask R-CNN.

    python -m benchmarks.detection --device cuda --precision bfloat16 --channels-last --out gpu.json
    python -m benchmarks.detection --detectors mask_rcnn:wsfvit_p0_224 torchvision --size 240 320 \\
        --batch-size 1 --threads 1 --warmup 1 --repeats 3 --out results/cpu/detection.json

KIND:BACKBONE is one of ours, of kind mask_rcnn or cascade_mask_rcnn; torchvision is its maskrcnn_resnet50_fpn_v2. All
start from random weights, train all of them, batch norms included, and get the same normalised images of shapes.
torchvision's transform is set to keep their size and values (min_size, max_size, mean 0, standard deviation 1), and
its numbers of proposals, RoIs and detections are those of our Mask R-CNN, --detector-kwargs included.

Training is forward, losses, backward and AdamW. Inference ends with masks pasted into the images; untrained detectors
would find nothing, so the first category's score is raised until every proposal is a candidate, as in a crowded image.
Peak memory (CUDA) is one detector's: weights, AdamW's state in training, and a step's own. Candidates take turns.

Prints a table per mode with the speed relative to torchvision (above 1 is faster), in CPU time on a CPU (of all threads
together) and wall time elsewhere; --out writes them as JSON. The second command takes
about two minutes.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
from torchvision.ops import masks_to_boxes

from benchmarks.common import build_timing_parser, set_up_device, write_run
from benchmarks.timing import Timing, cpu_or_wall_clock, time_candidates, training_step
from wsfvit.cli.common import KeyValues
from wsfvit.data.seeding import derive_seed
from wsfvit.detection.data.dataset import PaddingCollate, Sample
from wsfvit.detection.data.transforms import Normalize
from wsfvit.detection.model.config import KINDS, mask_rcnn_config
from wsfvit.detection.model.detector import build_detector, to_original
from wsfvit.detection.shapes import CATEGORIES, draw_shapes
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.precision import autocast, memory_format
from wsfvit.utils.tables import markdown_table

PEER = "torchvision"
DEFAULT_DETECTORS = ("mask_rcnn:wsfvit_t_224", "cascade_mask_rcnn:wsfvit_t_224", PEER)
# Far above what new classifiers, and a few steps of training, give any category or the background.
RAISED_LOGIT = 20.0


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("benchmarks.detection", __doc__)
    parser.add_argument(
        "--detectors",
        nargs="+",
        default=list(DEFAULT_DETECTORS),
        metavar="NAME",
        help=f"KIND:BACKBONE or {PEER} (default: {' '.join(DEFAULT_DETECTORS)})",
    )
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"), help="default: 480 640")
    parser.add_argument("--batch-size", type=int, default=2, help="images")
    parser.add_argument("--num-classes", type=int, default=80, help="categories")
    parser.add_argument(
        "--precision", choices=("float32", "tf32", "bfloat16"), default="float32", help="bfloat16 is autocast's"
    )
    parser.add_argument("--channels-last", action="store_true", help="memory format of weights and images")
    kwargs: dict[str, Any] = {"nargs": "*", "default": {}, "action": KeyValues, "metavar": "K=V"}
    parser.add_argument("--model-kwargs", **kwargs, help="of our backbones, such as frozen_stats=True, as published")
    parser.add_argument("--detector-kwargs", **kwargs, help="of all detectors, such as roi_samples=128")
    args = parser.parse_args(argv)
    for name in args.detectors:
        if name != PEER and not name.startswith(tuple(f"{kind}:" for kind in KINDS)):
            parser.error(f"--detectors: {name!r} is not {PEER}, nor KIND:BACKBONE, KIND one of {', '.join(KINDS)}")
    if min(args.size) < 32 or args.num_classes < len(CATEGORIES):
        parser.error(f"--size is at least 32 pixels, and --num-classes at least {len(CATEGORIES)}, that of the shapes")
    if min(args.batch_size, args.repeats) < 1:
        parser.error("--batch-size and --repeats are at least 1")
    return args


@dataclass(frozen=True)
class Candidate:
    """A detector with its data.

    Attributes:
        model: The detector.
        losses: Losses by name, of the images and their objects.
        detect: Masks (M, H, W) of each image.
        first_category: Bias of the first category's score, one of each classifier.
    """

    model: nn.Module
    losses: Callable[[], dict[str, Tensor]]
    detect: Callable[[], list[Tensor]]
    first_category: list[Tensor]

    def total_loss(self) -> Tensor:
        return torch.stack(list(self.losses().values())).sum()


def build_samples(count: int, size: tuple[int, int], seed: int) -> list[Sample]:
    """Images of one to four shapes, normalised, with boxes, labels and masks."""
    samples = []
    for number in range(count):
        pixels, labels, drawn = draw_shapes(*size, derive_seed(seed, number))
        masks = torch.from_numpy(drawn).byte()
        target = {
            # The boxes' far sides are the last pixels; a pixel is one wide.
            "boxes": masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]),
            "labels": torch.tensor(labels),
            "masks": masks,
        }
        samples.append(Sample(Normalize()(torch.from_numpy(pixels).permute(2, 0, 1)), target, size, number))
    return samples


def build_ours(name: str, samples: list[Sample], args: argparse.Namespace, device: torch.device) -> Candidate:
    """A detector of this package, with the images padded to what its backbone takes.

    Raises:
        UserError: the backbone does not exist, or it or the detector does not take its settings.
    """
    kind, _, backbone_name = name.partition(":")
    options = {"frozen_stats": False, **args.model_kwargs}
    config = KINDS[kind](backbone_name, args.num_classes, backbone_options=options, **args.detector_kwargs)
    model = build_detector(config)
    model.to(device, memory_format=memory_format(args))  # type: ignore[call-overload]
    backbone: Any = model.backbone
    batch = PaddingCollate(backbone.multiple)(samples).to(device)
    images = batch.images.to(memory_format=memory_format(args))

    def detect() -> list[Tensor]:
        found = model(images, batch.sizes)
        return [to_original(each, size, size)[1] for each, size in zip(found, batch.sizes, strict=True)]

    heads: Any = model.roi_heads.box_heads
    biases = [head.cls.bias[0] for head in heads]
    return Candidate(model, partial(model, images, batch.sizes, batch.targets), detect, biases)


def build_peer(samples: list[Sample], args: argparse.Namespace, device: torch.device) -> Candidate:
    """torchvision's Mask R-CNN without weights, at the images' own size, with as many proposals and RoIs as ours."""
    config = mask_rcnn_config(num_classes=args.num_classes, **args.detector_kwargs)
    model = maskrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=args.num_classes + 1,
        min_size=min(args.size),
        max_size=max(args.size),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_pre_nms_top_n_train=config.candidates_train,
        rpn_pre_nms_top_n_test=config.candidates_test,
        rpn_post_nms_top_n_train=config.proposals_train,
        rpn_post_nms_top_n_test=config.proposals_test,
        rpn_batch_size_per_image=config.rpn_samples,
        box_batch_size_per_image=config.roi_samples,
        box_score_thresh=config.score_threshold,
        box_detections_per_img=config.max_detections,
    ).to(device, memory_format=memory_format(args))
    batch = PaddingCollate()(samples).to(device)
    images = list(batch.images)
    # Its class 0 is the background.
    targets = [{**target, "labels": target["labels"] + 1} for target in batch.targets]

    def detect() -> list[Tensor]:
        return [found["masks"][:, 0] >= 0.5 for found in model(images)]

    bias = model.roi_heads.box_predictor.cls_score.bias[1]
    return Candidate(model, partial(model, images, targets), detect, [bias])


def build_candidates(args: argparse.Namespace, device: torch.device) -> dict[str, Candidate]:
    """The detectors that ``args`` names, on ``device``, with the same images."""
    samples = build_samples(args.batch_size, tuple(args.size), args.seed)
    candidates = {}
    for name in args.detectors:
        torch.manual_seed(args.seed)
        build = build_peer if name == PEER else partial(build_ours, name)
        candidates[name] = build(samples, args, device)
    return candidates


def time_detectors(candidates: dict[str, Candidate], args: argparse.Namespace, device: torch.device) -> list[Any]:
    """Trains, then detects: one record per mode and detector.

    Raises:
        UserError: a loss became non-finite; the cost of such steps is not that of training.
    """
    context = partial(autocast, device, torch.bfloat16 if args.precision == "bfloat16" else None)
    optimizers = {name: torch.optim.AdamW(each.model.parameters(), lr=1e-4) for name, each in candidates.items()}
    steps = {
        name: partial(training_step, each.model.train(), each.total_loss, context, optimizers[name])
        for name, each in candidates.items()
    }
    records = _time("training", candidates, steps, args, device)
    for record in records:
        name = record["detector"]
        record["loss"] = float(steps[name]()[0])
        record["held_memory"] += sum(x.nbytes for state in optimizers[name].state.values() for x in state.values())
        if not math.isfinite(record["loss"]):
            raise UserError(f"{name}: its loss became {record['loss']}; try another --precision or --seed")
    finders = {}
    for name, each in candidates.items():
        each.model.eval()
        for bias in each.first_category:
            bias.data += RAISED_LOGIT
        finders[name] = partial(detect_step, each, context)
    found = _time("inference", candidates, finders, args, device)
    for record in found:
        masks = finders[record["detector"]]()
        record["detections_per_image"] = sum(map(len, masks)) / len(masks)
    return records + found


def detect_step(candidate: Candidate, context: Callable[[], Any]) -> list[Tensor]:
    """Detections with their masks in the images."""
    with torch.no_grad(), context():
        return candidate.detect()


def _time(
    mode: str, candidates: dict[str, Candidate], steps: Any, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    print(f"timing {mode}", flush=True)
    timings = time_candidates(steps, args, device, cpu_or_wall_clock(device)[0])
    return [
        {
            "mode": mode,
            "detector": name,
            "params": sum(p.numel() for p in candidates[name].model.parameters()),
            "images_per_second": args.batch_size / timing.median,
            "speed": timings[PEER].median / timing.median if PEER in timings else None,
            "held_memory": sum(x.nbytes for x in candidates[name].model.state_dict().values()),
            **asdict(timing),
        }
        for name, timing in timings.items()
    ]


def print_tables(records: list[dict[str, Any]]) -> None:
    """One table for training, one for inference."""
    header = ["detector", "params (M)", "ms", "20 to 80 %", "peak MiB", "images/s", f"speed vs {PEER}"]
    for mode in ("training", "inference"):
        rows = []
        for record in (record for record in records if record["mode"] == mode):
            timing = Timing(**{field.name: record[field.name] for field in fields(Timing)})
            if timing.peak_memory is not None:
                timing = replace(timing, peak_memory=timing.peak_memory + record["held_memory"])
            speed = "" if record["speed"] is None else f"{record['speed']:.2f}"
            cells = f"{record['params'] / 1e6:.1f}", *timing.cells(), f"{record['images_per_second']:.3g}", speed
            rows.append([record["detector"], *cells])
        print(f"\n{mode}\n\n{markdown_table(header, rows)}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads, tf32=args.precision == "tf32")
    # The heads' inputs change in number at every step, and cuDNN would search again for each number.
    torch.backends.cudnn.benchmark = False
    candidates = build_candidates(args, device)
    records = time_detectors(candidates, args, device)
    print_tables(records)
    write_run(args, clock=cpu_or_wall_clock(device)[1], results=records)


if __name__ == "__main__":
    run_main(main)
