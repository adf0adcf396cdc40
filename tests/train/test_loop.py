"""The loop by itself: accumulation, clipping, finiteness, what it reports."""

import copy

import pytest
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3

from wsfvit.cli.train import parse_train_args
from wsfvit.factory.recipe import build_erasing
from wsfvit.train.classify import Classification
from wsfvit.train.loop import LoopEvents, StepConfig, backward, prepare_batch, train_one_epoch, update
from wsfvit.train.state import TrainState
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.progress import Progress, duration


class Scripted(torch.nn.Module):
    """A classifier whose output is scaled by the next number of a list."""

    def __init__(self, factors):
        super().__init__()
        self.head = torch.nn.Linear(4, 3, bias=False)
        self.factors = iter(factors)

    def forward(self, x):
        return self.head(x.flatten(1)) * next(self.factors)


def classification(erasing=None, mixup=None):
    task = Classification(parse_train_args([]), World(torch.device("cpu")))
    task.criterion, task.erasing, task.mixup = torch.nn.CrossEntropyLoss(), erasing, mixup
    return task


def small_state(factors, lr=1.0, **changed):
    torch.manual_seed(0)
    model = Scripted(factors)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    state = TrainState(model, optimizer, None, torch.amp.GradScaler("cpu", enabled=False), None)
    fixed = dict(world=World(torch.device("cpu")), task=classification(), log_interval=10)
    return state, StepConfig(**(fixed | changed))


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 1, 2, 2, generator=generator), torch.arange(6) % 3) for _ in range(count)]


class Bad(LoopEvents):
    """Notes the skipped updates: (count of them, gradient norm, batches of the group, gradients there)."""

    def __init__(self):
        self.seen = []

    def on_bad_step(self, state, grad_norm):
        there = all(parameter.grad is not None for parameter in state.model.parameters())
        self.seen.append((state.bad_steps, grad_norm.item(), len(state.group), there))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("factor", [NAN, INF, 1e38])
def test_an_update_that_is_not_finite_is_as_if_its_batch_was_not_there(factor):
    """A factor of 1e38 leaves the loss finite, and the square of the gradient's norm not."""
    data = batches(3)
    state, cfg = small_state([1.0, factor, 1.0], lr=0.1)
    without, _ = small_state([1.0, 1.0], lr=0.1)
    events = Bad()
    result = train_one_epoch(state, data, cfg, events)
    expected = train_one_epoch(without, [data[0], data[2]], cfg)
    assert torch.equal(state.model.head.weight, without.model.head.weight)
    assert result["loss"] == expected["loss"]
    assert (state.bad_steps, state.bad_in_a_row, state.num_updates, state.overflows) == (1, 0, 3, 0)
    ((count, norm, group, there),) = events.seen
    assert (count, group, there) == (1, 1, True) and not torch.tensor(norm).isfinite()


def test_one_bad_batch_costs_its_whole_group():
    state, cfg = small_state([1.0, 1.0, NAN, 1.0, 1.0, 1.0], lr=0.1, grad_accum_steps=2)
    events = Bad()
    train_one_epoch(state, batches(6), cfg, events)
    assert [group for _, _, group, _ in events.seen] == [2] and state.images == 4 * 6


def test_averages_and_running_statistics_know_nothing_of_a_skipped_update():
    state, cfg = small_state([1.0, NAN])
    state.model.head = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    optimizer = torch.optim.AdamW(state.model.parameters())
    state = TrainState(state.model, optimizer, None, state.scaler, ModelEmaV3(state.model, decay=0.5))
    good, bad = batches(1)[0], batches(1)[0]
    bad[0][0] = NAN
    train_one_epoch(state, [good], cfg)
    before = copy.deepcopy([state.model.state_dict(), state.ema.module.state_dict(), optimizer.state_dict()["state"]])
    state.model.factors = iter([1.0, 1.0])
    train_one_epoch(state, [bad, good], cfg, Stop())
    after = [state.model.state_dict(), state.ema.module.state_dict(), optimizer.state_dict()["state"]]
    for old, new in zip(before, after, strict=True):
        old, new = (flatten(tree) for tree in (old, new))
        assert (
            all(torch.equal(old[key], new[key]) for key in old if "num_batches" not in key) and old.keys() == new.keys()
        )
    assert state.bad_steps == 1


class Stop(LoopEvents):
    """Ends the epoch at the first update."""

    def on_update(self, state):
        return True


def flatten(tree, path=""):
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: value for name, part in tree.items() for key, value in flatten(part, f"{path}.{name}").items()}


@pytest.mark.parametrize(("limit", "done"), [(0, 2), (1, 2), (3, 6)])
def test_too_many_in_a_row_end_the_run(limit, done):
    factors = [1.0, NAN, 1.0, NAN, NAN, NAN, 1.0]
    state, cfg = small_state(factors, max_bad_steps=limit)
    expected = r"not finite, the last in epoch 0, by batch \d; stopped unsaved. Try a lower --lr"
    with pytest.raises(UserError, match=expected):
        train_one_epoch(state, batches(7), cfg)
    assert state.num_updates == done


def test_a_loss_that_is_not_finite_in_another_process_skips_the_update_here_too():
    class Two(World):
        def sum(self, tensor):
            return tensor + torch.tensor([1, 0], dtype=tensor.dtype) if tensor.dtype == torch.int32 else tensor

    state, cfg = small_state([1.0], world=Two(torch.device("cpu")))
    before = state.model.head.weight.detach().clone()
    with pytest.raises(UserError, match="epoch 0 had no finite update"):
        train_one_epoch(state, batches(1), cfg)
    assert state.bad_steps == 1 and torch.equal(before, state.model.head.weight)


def test_an_epoch_without_a_finite_update_ends_the_run():
    state, cfg = small_state([NAN] * 3)
    with pytest.raises(UserError, match="epoch 0 had no finite update"):
        train_one_epoch(state, batches(3), cfg)


def test_a_loss_scale_that_is_too_high_is_no_bad_step():
    """2**125 overflows float32 until it is halved often enough; at a scale of 1 there is no such excuse."""
    state, cfg = small_state([100.0] * 12, lr=0.1)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125)
    train_one_epoch(state, batches(12), cfg)
    assert 0 < state.overflows < 12 and state.bad_steps == 0 and state.images == 12 * 6
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    state.model.factors = iter([1e38, 1.0])
    events = Bad()
    state.begin_epoch(1)
    train_one_epoch(state, batches(2), cfg, events)
    assert len(events.seen) == 1


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
    images, labels = batches(1)[0]
    backward(state, cfg, (images * 100, labels), 1, update_follows=True)
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
    from wsfvit.cli.train import parse_train_args

    erasing = build_erasing(parse_train_args(["--reprob", "1"]), torch.device("cpu"))
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3

    def prepared(index, epoch, seed=42, rank=0):
        world = World(torch.device("cpu"), rank=rank, size=2)
        mixup = Mixup(0.5, 1.0, num_classes=3)
        task = classification(erasing, mixup)
        _, cfg = small_state([], world=world, task=task, seed=seed)
        batch = prepare_batch((images.clone(), labels), index, epoch, cfg)
        return batch[0], torch.rand(2)

    first = prepared(1, 2)
    torch.rand(7)
    assert all(map(torch.equal, first, prepared(1, 2)))
    for other in (prepared(2, 1), prepared(1, 3), prepared(1, 2, seed=43), prepared(1, 2, rank=1)):
        assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_figures_reach_the_caller_at_log_points():
    seen = []

    class Keep(LoopEvents):
        def on_log(self, state, batch, figures):
            seen.append((state.num_updates, figures))

    state, cfg = small_state([1.0] * 5, log_interval=2)
    train_one_epoch(state, batches(5), cfg, Keep())
    assert [at for at, _ in seen] == [2, 4, 5]
    assert all(
        figures.keys() == {"loss", "interval_loss", "lr", "grad_norm", "images_per_s", "data_wait", "peak_gib"}
        for _, figures in seen
    )
    # Intervals of two, two and one batches of equal size.
    (first, second, last), losses = ([figures[key] for _, figures in seen] for key in ("interval_loss", "loss"))
    assert first == losses[0] and losses[1] == pytest.approx((first + second) / 2)
    assert losses[2] == pytest.approx((2 * first + 2 * second + last) / 5)


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
