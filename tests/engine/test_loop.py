"""The loop by itself: accumulation, clipping, finiteness, what it reports."""

import pytest
import torch
from timm.data import Mixup

from wsfvit.engine.distributed import World
from wsfvit.engine.loop import LoopEvents, StepConfig, prepare_batch, train_one_epoch, update
from wsfvit.engine.progress import Progress, duration
from wsfvit.engine.recipe import build_erasing
from wsfvit.engine.state import TrainState
from wsfvit.errors import UserError


class Scripted(torch.nn.Module):
    """A classifier whose output is scaled by the next number of a list."""

    def __init__(self, factors):
        super().__init__()
        self.head = torch.nn.Linear(4, 3, bias=False)
        self.factors = iter(factors)

    def forward(self, x):
        return self.head(x.flatten(1)) * next(self.factors)


def small_state(factors, lr=1.0, **changed):
    torch.manual_seed(0)
    model = Scripted(factors)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    state = TrainState(model, optimizer, None, torch.amp.GradScaler("cpu", enabled=False), None)
    fixed = dict(
        world=World(torch.device("cpu")),
        layout=torch.contiguous_format,
        amp_dtype=None,
        model_dtype=torch.float32,
        loss=torch.nn.CrossEntropyLoss(),
        erasing=None,
        mixup=None,
        mixup_off_epoch=0,
        epochs=1,
        seed=42,
        grad_accum_steps=1,
        clip_grad=None,
        clip_mode="norm",
        synchronize=False,
        log_interval=10,
    )
    return state, StepConfig(**(fixed | changed))


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 1, 2, 2, generator=generator), torch.arange(6) % 3) for _ in range(count)]


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_non_finite_loss_stops_before_the_update(factor):
    state, cfg = small_state([1.0, factor, 1.0])
    with pytest.raises(UserError, match=r"loss became (nan|inf) in epoch 0, by batch 1; .*Try a lower --lr"):
        train_one_epoch(state, batches(3), cfg)
    assert state.num_updates == 1
    assert torch.isfinite(state.model.head.weight).all()


def test_accumulated_gradient_is_that_of_the_joined_batch():
    """Five batches in groups of two: two full updates and one of a single batch."""
    data = batches(5)
    state, cfg = small_state([1.0] * 5, lr=0.1, grad_accum_steps=2)
    joined, plain = small_state([1.0] * 3, lr=0.1)
    one = train_one_epoch(state, data, cfg)
    groups = [data[0:2], data[2:4], data[4:5]]
    two = train_one_epoch(joined, [tuple(map(torch.cat, zip(*group, strict=True))) for group in groups], plain)
    assert state.num_updates == joined.num_updates == 3
    torch.testing.assert_close(state.model.head.weight, joined.model.head.weight)
    assert one["loss"] == pytest.approx(two["loss"])


@pytest.mark.parametrize("mode", ["norm", "value"])
def test_clipping_bounds_the_update(mode):
    state, cfg = small_state([1.0], clip_grad=0.01, clip_mode=mode)
    before = state.model.head.weight.detach().clone()
    cfg.loss(state.model(batches(1)[0][0] * 100), batches(1)[0][1]).backward()
    exact = state.model.head.weight.grad.norm()
    reported = update(state, cfg)
    change = state.model.head.weight - before
    if mode == "norm":
        assert change.norm().item() == pytest.approx(0.01, rel=1e-3)
        assert reported.item() == pytest.approx(exact.item())
    else:
        assert change.abs().max().item() == pytest.approx(0.01, rel=1e-3)


def test_loop_ends_where_its_caller_asks_and_goes_on_from_there():
    class StopAfterTwo(LoopEvents):
        def on_update(self, state):
            return state.num_updates == 2

    data = batches(4)
    state, cfg = small_state([1.0] * 4, lr=0.1)
    whole, _ = small_state([1.0] * 4, lr=0.1)
    assert not train_one_epoch(state, data, cfg, StopAfterTwo())["finished"]
    assert state.batch == 2

    class Rest(list):
        def __len__(self):
            return len(data)

    rest = train_one_epoch(state, Rest(data[2:]), cfg)
    assert rest["finished"] and rest["loss"] == train_one_epoch(whole, data, cfg)["loss"]
    assert torch.equal(state.model.head.weight, whole.model.head.weight)


def test_batches_draw_from_their_position_alone():
    """Erasing and mixing repeat for the same (seed, epoch, batch, rank), and differ for every other."""
    from wsfvit.engine.args import parse_train_args

    erasing = build_erasing(parse_train_args(["--reprob", "1"]), torch.device("cpu"))
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3

    def prepared(index, epoch, seed=42, rank=0):
        world = World(torch.device("cpu"), rank=rank, size=2)
        mixup = Mixup(0.5, 1.0, num_classes=3)
        _, cfg = small_state([], world=world, erasing=erasing, mixup=mixup, seed=seed)
        batch = prepare_batch(images.clone(), labels, index, epoch, cfg)
        return batch[0], torch.rand(2)

    first = prepared(1, 2)
    torch.rand(7)
    assert all(map(torch.equal, first, prepared(1, 2)))
    for other in (prepared(2, 1), prepared(1, 3), prepared(1, 2, seed=43), prepared(1, 2, rank=1)):
        assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_figures_reach_the_caller_at_log_points():
    seen = []

    class Keep(LoopEvents):
        def on_log(self, state, images, figures):
            seen.append((state.num_updates, figures))

    state, cfg = small_state([1.0] * 5, clip_grad=1.0, log_interval=2)
    train_one_epoch(state, batches(5), cfg, Keep())
    assert [at for at, _ in seen] == [2, 4, 5]
    assert all(figures.keys() == {"loss", "lr", "grad_norm", "images_per_s"} for _, figures in seen)


def test_plain_progress_lines(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with Progress("epoch 1/3", 4, 2, first=1, epochs_left=2, epoch_seconds=3600) as progress:
        for _ in progress.timed(range(3)):
            progress.step(8, loss=0.5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in lines] == ["epoch 1/3  [2/4", "epoch 1/3  [4/4"]
    assert "loss 0.5" in lines[1] and "data " in lines[1] and lines[1].endswith("0 s left, 2:00:00 h of the run")


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.4, "9 s"), (59.6, "1:00 min"), (185, "3:05 min"), (25400, "7:03:20 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
