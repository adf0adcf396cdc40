"""Export to ONNX, torch.export programs and AOTInductor packages; the export command.

All three start from one graph of standard operators, traced by ``torch.export`` at a fixed image size. The result is
compared with PyTorch on random images before it is written, and a JSON file beside it describes input and output.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsfvit.factory.model import fuse_model
from wsfvit.inference.predictor import Classifier, load_classifier
from wsfvit.utils.errors import UserError, first_line
from wsfvit.utils.files import output_file, to_json, write_atomic, write_text_atomic
from wsfvit.utils.finite import count_nonfinite, refuse_nonfinite

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "aoti": ".pt2"}
INPUT, OUTPUT = "images", "logits"
DYNAMIC_BATCHES = (1, 3)
# Largest difference from PyTorch, relative to the largest output.
TOLERANCE = 1e-4
# "" is ONNX's standard domain; the PyTorch namespaces are standard, torchvision's has the detection operators.
ONNX_DOMAINS = ("", "ai.onnx")
TORCH_NAMESPACES = ("aten", "prims", "higher_order", "torchvision")

Runner = Callable[[Tensor], Any]


def run_export(args: argparse.Namespace) -> dict[str, Any]:
    """Run the export command.

    Returns:
        The description written as JSON, see `describe`.

    Raises:
        UserError: Arguments do not fit, a package or compiler is missing, the model cannot be exported, or the result
            differs from PyTorch; nothing is written then.
    """
    path = output_path(args.output, args.format)
    if args.format == "onnx" and args.device != "cpu":
        raise UserError(f"--device {args.device}: ONNX files do not depend on the device, leave it out")
    if not args.model and not args.checkpoint:
        raise UserError("nothing to export: pass --checkpoint FILE, or --model NAME")
    require_tools(args.format, args.check)
    classifier = load_classifier(args, args.model, args.checkpoint)
    weights = "" if classifier.trained else " untrained, random weights"
    size = "x".join(map(str, classifier.data_config["input_size"]))
    log(f"{classifier.name}{weights}, {size}, as {args.format}; this can take minutes")
    batches = DYNAMIC_BATCHES if args.dynamic_batch else (args.batch_size,)
    shape = (batches[-1], *classifier.data_config["input_size"])
    began = time.perf_counter()
    # The export, fused or not, is compared with the unfused model.
    model = fuse_model(classifier.name, classifier.model) if args.fuse else classifier.model
    images = torch.randn(shape, device=classifier.device)
    with torch.no_grad():
        refuse_nonfinite(int(count_nonfinite(classifier.model(images))), len(images), "random images")
    content = export_model(model, images, args.format, args.dynamic_batch)
    description = describe(classifier, args.format, None if args.dynamic_batch else args.batch_size)
    if args.check:
        log(f"exported in {time.perf_counter() - began:.0f} s; comparing with PyTorch")
        run = load_runner(content, args.format)
        difference, scale = compare_outputs(classifier.model, run, shape[1:], batches, classifier.device)
        description["max_difference"] = difference
        shown = " and ".join(map(str, batches))
        log(f"largest difference from PyTorch: {difference:.1e}, of outputs up to {scale:.1e} (batches of {shown})")
    write_export(path, content, description)
    return description


def log(text: str) -> None:
    print(text, flush=True)


def output_path(output: str, format: str) -> Path:
    """The file to write; raise a ``UserError`` if it lacks the suffix of the format, or its folder does not exist."""
    path = output_file("--output", output)
    if path.suffix != SUFFIXES[format]:
        raise UserError(f"--output {path}: a file of --format {format} ends in {SUFFIXES[format]}")
    return path


def write_export(path: Path, content: bytes, description: dict[str, Any]) -> None:
    """Write the exported model, and its description as JSON beside it."""
    write_atomic(path, lambda file: file.write(content))
    # Not NAME.json, which belongs to NAME.safetensors.
    described = path.with_name(f"{path.name}.json")
    write_text_atomic(described, to_json(description, indent=2) + "\n")
    log(f"{path} ({len(content) / 1e6:.1f} MB), described by {described.name}")


def require_tools(format: str, check: bool) -> None:
    """Raise a ``UserError`` early if a package or the C++ compiler that a format needs is missing."""
    if format == "onnx":
        wanted = ("onnx", "onnxscript", *(("onnxruntime",) if check else ()))
        missing = [name for name in wanted if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"--format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if format == "aoti":
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise UserError(
                f"--format aoti needs a C++ compiler and '{compiler}' is missing: install one, or name it in CXX"
            )


def export_model(
    model: nn.Module,
    images: Tensor,
    format: str = "onnx",
    dynamic_batch: bool = False,
    outputs: Sequence[str] = (OUTPUT,),
) -> bytes:
    """Export a model; leaves it in eval mode with frozen parameters.

    Args:
        model: Maps images to one tensor or a tuple of tensors.
        images: An example (B, C, H, W) on the model's device; C, H and W become fixed, and B unless it is dynamic. A
            dynamic batch needs B >= 2, because tracers treat 1 as a constant.
        format: "onnx", "torch" or "aoti".
        dynamic_batch: Accept any B >= 1.
        outputs: Names of the tensors that the model returns, for ONNX.

    Returns:
        The content of the file.

    Raises:
        UserError: The model cannot be exported, or only with non-standard operators.
    """
    name = type(model).__name__
    # Frozen: with gradients, torch traces and decomposes attention with a bias inconsistently (torch 2.11).
    model.eval().requires_grad_(False)
    batch: dict[int, Any] = {0: torch.export.Dim("batch", min=1)} if dynamic_batch else {}
    try:
        with _quiet():
            program = torch.export.export(model, (images,), dynamic_shapes=(batch,))
            foreign = foreign_operators(program)
            if foreign:
                raise UserError(f"{name} has operators that standard PyTorch does not have: {', '.join(foreign)}")
            return _write(program, format, outputs)
    except UserError:
        raise
    # Tracers, converters and compilers raise exceptions of many types.
    except Exception as err:
        cause = err.__cause__ or err
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        raise UserError(f"{name} cannot be exported as {format} ({reason})") from err


def _write(program: torch.export.ExportedProgram, format: str, outputs: Sequence[str]) -> bytes:
    if format == "onnx":
        converted = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=outputs, verbose=False)
        assert converted is not None
        foreign = sorted({node.domain for node in converted.model.graph.all_nodes()} - set(ONNX_DOMAINS))
        if foreign:
            raise UserError(f"the ONNX graph has operators of other domains: {', '.join(foreign)}")
        return converted.model_proto.SerializeToString()
    if format == "torch":
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/model.pt2")
        return Path(package).read_bytes()


def foreign_operators(program: torch.export.ExportedProgram) -> list[str]:
    """Names of the operators in a graph that are not PyTorch's."""
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    # The others are Python functions for sizes and tuples.
    kinds = (torch._ops.OpOverload, torch._ops.HigherOrderOperator)
    operators = [target for target in targets if isinstance(target, kinds)]
    return sorted(str(operator) for operator in operators if operator.namespace not in TORCH_NAMESPACES)


def load_runner(content: bytes, format: str) -> Runner:
    """The exported model as a function of images (B, C, H, W) on the device of the export."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> Any:
            first, *others = map(torch.from_numpy, session.run(None, {INPUT: images.numpy()}))
            return (first, *others) if others else first

        return run
    if format == "torch":
        with _quiet():
            return torch.export.load(io.BytesIO(content)).module()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt2")
        path.write_bytes(content)
        return torch._inductor.aoti_load_package(str(path))


@torch.no_grad()
def compare_outputs(
    model: nn.Module, run: Runner, input_size: Sequence[int], batches: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Compare a model, in eval mode, with its export on batches of random images of ``input_size`` (C, H, W).

    Returns:
        The largest absolute difference, and the largest absolute output of the model.

    Raises:
        UserError: They differ by more than TOLERANCE.
    """
    generator = torch.Generator().manual_seed(0)
    worst, largest = 0.0, 0.0
    for batch in batches:
        images = torch.randn((batch, *input_size), generator=generator).to(device)
        expected = model(images)
        difference, scale = float((run(images) - expected).abs().max()), float(expected.abs().max())
        # "not below" rather than "above", so that NaN fails too
        if not difference <= TOLERANCE * scale:
            raise UserError(f"the exported model differs from PyTorch by {difference:.1e} (batch of {batch})")
        worst, largest = max(worst, difference), max(largest, scale)
    return worst, largest


def describe(classifier: Classifier, format: str, batch_size: int | None) -> dict[str, Any]:
    """Description of the exported file for programs that run it; a ``batch_size`` of None is any.

    Returns:
        format, model, ``input`` and ``output`` (name, shape with -1 for any size), mean, std, interpolation, crop_pct,
        crop_mode, class_names, and the version of torch.
    """
    batch = -1 if batch_size is None else batch_size
    config = classifier.data_config
    return {
        "format": format,
        "model": classifier.name,
        "trained": classifier.trained,
        "input": {"name": INPUT, "shape": [batch, *config["input_size"]], "dtype": "float32"},
        "output": {"name": OUTPUT, "shape": [batch, classifier.model.num_classes], "dtype": "float32"},
        "device": classifier.device.type,
        **{key: config[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")},
        "class_names": classifier.class_names,
        "torch": torch.__version__,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of tracers and converters about their internals."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
