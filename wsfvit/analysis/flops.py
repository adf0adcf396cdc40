"""The flops command: one model's figures module by module, or the table of all WSF-ViT models.

The convention is in `wsfvit.analysis.flop_rules`; the published table's "FLOPs" are the MACs counted here.
"""

import argparse
import copy
from collections.abc import Iterable, Iterator, Mapping

import timm
import torch

from wsfvit.analysis.flop_counter import Complexity, count_complexity
from wsfvit.analysis.flop_rules import Cost
from wsfvit.factory.data import resolve_data
from wsfvit.factory.model import build_model
from wsfvit.utils.errors import UserError, import_optional
from wsfvit.utils.files import output_file, write_text_atomic
from wsfvit.utils.tables import markdown_table

# As printed in the WSF-ViT release of February 2026, at the model's size: parameters (M) and "FLOPs" (G, in fact MACs);
# then the MACs (G) of the release's own code, counted with fvcore.
PUBLISHED = {
    "wsfvit_p0_224": (2.9, 0.62, 0.602),
    "wsfvit_p1_224": (5.0, 1.04, 1.028),
    "wsfvit_p2_224": (6.0, 1.35, 1.336),
    "wsfvit_n_224": (10.6, 1.97, 1.949),
    "wsfvit_t_224": (23.3, 4.6, 4.574),
    "wsfvit_s_224": (41.7, 7.5, 7.416),
    "wsfvit_m_224": (69.7, 12.4, 12.372),
    "wsfvit_b_224": (100.0, 17.0, 16.942),
    "wsfvit_b_256": (100.0, 22.2, 22.245),
    "wsfvit_t_384": (23.3, 14.1, 14.071),
    "wsfvit_s_384": (41.8, 22.9, 22.871),
    "wsfvit_m_384": (69.7, 37.8, 37.763),
    "wsfvit_b_384": (100.0, 51.7, 51.495),
}
CONVENTION = (
    "MACs as fvcore counts them: 1 per multiply-accumulate of convolutions, linear layers, matrix products and "
    "attention, fused or not; 2 per element of a batch norm, 5 of a layer norm. FLOPs are 2 x MACs plus the FLOPs "
    "outside MACs, which are elementwise arithmetic (the additions of the Haar transforms too), softmax, reductions "
    "and pooling."
)
ORIGIN = (
    "Published: the figures printed in the WSF-ViT release of February 2026. Recounted: the MACs of that release's own "
    "code, counted with fvcore. The difference is ours against the recount. Relative position biases are looked up by "
    "an index here, which costs nothing; products with one-hot matrices, as in TensorFlow's MaxViT, would add 0.002 to "
    "0.15 G and leave no row further than 0.21 % from the recount."
)
COLUMNS = (
    *("model", "input", "params (M)", "published params (M)"),
    *("published MACs (G)", "recounted MACs (G)", "MACs (G)", "difference (%)"),
    *("activations (M)", "FLOPs outside MACs (G)"),
)


def run_flops(args: argparse.Namespace) -> None:
    """Run get_flops.py: report one model's figures, or the table of all, on the terminal or to ``--out``.

    Raises:
        UserError: No such model or folder, a size that the model does not take, or an operator without a rule.
    """
    if args.all and args.counter == "fvcore":
        raise UserError("--counter fvcore counts one model: pass --model NAME instead of --all")
    out = output_file("--out", args.out) if args.out else None
    text = "\n".join(_report_all(args) if args.all else _report_one(args))
    if out is None:
        print(text)
    else:
        write_text_atomic(out, f"{text}\n")
        print(f"table: {out}")


def _report_one(args: argparse.Namespace) -> Iterator[str]:
    found, shape = count_named(args, args.model)
    modules = [m for m in found.modules if (m.name.count(".") + 1 if m.name else 0) <= args.depth]
    second, left_out = count_with_fvcore(args, shape) if args.counter == "fvcore" else ({}, {})
    if args.format == "csv":
        yield "module,params,macs,share,activations,flops_outside_macs" + (",fvcore_macs" if second else "")
        for m in modules:
            share = m.cost.macs / max(found.macs, 1)
            line = f"{m.name},{m.params},{m.cost.macs},{share:.6f},{m.cost.activations},{m.cost.other}"
            yield line + (f",{second[m.name]}" if second else "")
        return
    yield f"{args.model}, input {_size(shape)}\n"
    yield f"  parameters          {found.params / 1e6:.3f} M"
    yield f"  MACs                {found.macs / 1e9:.3f} G  (what papers, the WSF-ViT release too, print as FLOPs)"
    yield f"  FLOPs               {(2 * found.macs + found.other_flops) / 1e9:.3f} G"
    yield f"  FLOPs outside MACs  {found.other_flops / 1e9:.3f} G"
    yield f"  activations         {found.activations / 1e6:.3f} M elements\n"
    rows = [
        [
            *(m.name or "(whole model)", f"{m.params / 1e6:.3f}", f"{m.cost.macs / 1e6:.2f}"),
            f"{100 * m.cost.macs / max(found.macs, 1):.2f}",
            *([f"{second[m.name] / 1e6:.2f}"] if second else []),
        ]
        for m in modules
        if m.params or m.cost.macs
    ]
    header = ("module", "parameters (M)", "MACs (M)", "share (%)", *(("fvcore (M)",) if second else ()))
    yield markdown_table(header, rows, aligned=False)
    yield ""
    if second:
        shown = ", ".join(f"{name.removeprefix('aten::')} ({calls} x)" for name, calls in sorted(left_out.items()))
        yield f"fvcore counts nothing for these operators: {shown or 'none'}. It counts adaptive pooling as MACs.\n"
    yield from describe_counting(found.operators)


def _report_all(args: argparse.Namespace) -> Iterator[str]:
    order = list(PUBLISHED)

    # The published models in their order, then the others, each where the published one of the same size would be.
    def place(name: str) -> tuple[bool, int]:
        near = name.replace("wsfvit_dwt_", "wsfvit_")
        return name not in order, order.index(near) if near in order else len(order)

    operators: dict[str, Cost] = {}
    rows = []
    for name in sorted(timm.list_models("wsfvit*"), key=place):
        found, shape = count_named(args, name)
        operators |= {key: max(cost, operators.get(key, cost), key=_kind) for key, cost in found.operators.items()}
        rows.append(_table_cells(args, name, shape, found))
    if args.format == "csv":
        yield from (",".join(cells) for cells in (COLUMNS, *rows))
        return
    yield f"Counted by `python get_flops.py --all` with torch {torch.__version__} and timm {timm.__version__}.\n"
    yield markdown_table(COLUMNS, [[cell or "-" for cell in cells] for cells in rows], aligned=False)
    yield f"\n{ORIGIN}\n"
    yield from describe_counting(operators)


def _table_cells(args: argparse.Namespace, name: str, shape: tuple[int, ...], found: Complexity) -> list[str]:
    # The figures were published for each model's own size and 1,000 classes.
    asked = (args.img_size, args.input_size, args.num_classes, args.in_chans, *args.model_kwargs)
    own_setting = args.batch_size == 1 and not any(asked)
    params, published, recounted = PUBLISHED.get(name, (None,) * 3) if own_setting else (None,) * 3
    difference = "" if recounted is None else f"{100 * (found.macs / 1e9 / recounted - 1):+.2f}"
    return [
        name,
        _size(shape),
        f"{found.params / 1e6:.2f}",
        *("" if value is None else str(value) for value in (params, published, recounted)),
        f"{found.macs / 1e9:.3f}",
        difference,
        f"{found.activations / 1e6:.2f}",
        f"{found.other_flops / 1e9:.3f}",
    ]


def count_named(args: argparse.Namespace, name: str) -> tuple[Complexity, tuple[int, ...]]:
    """Figures of the model called ``name`` with the settings in ``args``, and the shape (B, C, H, W) of its input.

    Raises:
        UserError: No such model, a size that it does not take, or an operator without a rule.
    """
    args = copy.copy(args)
    args.model, args.mean, args.std = name, None, None
    # Tensors on the meta device have shapes but no values, so nothing is computed.
    with torch.device("meta"):
        model = build_model(args)
        shape = (args.batch_size, *resolve_data(args, model)["input_size"])
        try:
            return count_complexity(model, torch.zeros(shape)), shape
        except (AssertionError, RuntimeError, ValueError) as err:
            raise UserError(f"model {name} cannot be run on input {_size(shape)}: {err}") from err


def count_with_fvcore(args: argparse.Namespace, shape: tuple[int, ...]) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """MACs of each module by fvcore, and calls of the operators that it leaves out; a ``UserError`` without fvcore."""
    fvcore = import_optional("fvcore.nn", "--counter fvcore: pip install fvcore")
    args = copy.copy(args)
    args.mean, args.std = None, None
    # It traces the model, so not on the meta device.
    analysis = fvcore.FlopCountAnalysis(build_model(args).eval(), torch.zeros(shape))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.by_module(), analysis.unsupported_ops()


def describe_counting(operators: dict[str, Cost]) -> Iterator[str]:
    """Lines that state the convention and how each operator was counted."""
    yield CONVENTION
    titles = ("Operators that cost nothing", "Operators counted outside MACs", "Operators counted as MACs")
    for kind, title in reversed(list(enumerate(titles))):
        names = {name.removeprefix("aten::").removesuffix("_") for name, c in operators.items() if _kind(c) == kind}
        yield f"\n{title}: {', '.join(sorted(names)) or 'none'}."


def _kind(cost: Cost) -> int:
    return 2 if cost.macs else 1 if cost.other else 0


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
