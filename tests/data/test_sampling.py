"""Samplers: complete, without doubles, the same for every number of processes, repeats as in timm."""

import itertools

import pytest
from timm.data.distributed_sampler import RepeatAugSampler

from wsfvit.data import EvalSampler, TrainSampler


def epoch_of(num_samples, batch_size, world_size=1, epoch=0, **options):
    """Global batches, as sets."""
    ranks = []
    for rank in range(world_size):
        sampler = TrainSampler(num_samples, batch_size, world_size, rank, **options)
        sampler.set_position(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    assert all(len(batch) == batch_size for batch in itertools.chain(*ranks))
    return [sorted(sum(batches, [])) for batches in zip(*ranks, strict=True)]


@pytest.mark.parametrize("num_samples", [24, 29])
def test_an_epoch_takes_each_image_at_most_once(num_samples):
    batches = epoch_of(num_samples, 8)
    assert len(batches) == 3
    seen = sum(batches, [])
    assert len(set(seen)) == len(seen) == 24 and set(seen) <= set(range(num_samples))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_global_batches_do_not_depend_on_the_processes(world_size, repeats):
    options = dict(epoch=5, seed=3, repeats=repeats)
    assert epoch_of(100, 12 // world_size, world_size, **options) == epoch_of(100, 12, **options)


def test_epochs_and_seeds_change_the_order():
    orders = [epoch_of(50, 10, epoch=epoch, seed=seed) for epoch, seed in [(0, 1), (1, 1), (0, 2), (1, 0)]]
    assert all(one != other for one, other in itertools.combinations(orders, 2))


def test_the_order_of_an_epoch_never_changes():
    """Fixed for good: a checkpoint resumed by a later version must go on with the same images."""
    sampler = TrainSampler(10, 5, seed=42)
    sampler.set_position(1)
    assert list(sampler) == [[9, 5, 2, 4, 1], [0, 3, 7, 8, 6]]


def test_position():
    sampler = TrainSampler(23, 4, 1, 0, seed=1)
    sampler.set_position(3)
    whole = list(sampler)
    for first_batch in range(6):
        sampler.set_position(3, first_batch)
        assert list(sampler) == whole[first_batch:]
        assert len(sampler) == 5


@pytest.mark.parametrize("num_samples", [60, 256, 700, 1000])
@pytest.mark.parametrize(("repeats", "world_size"), [(2, 1), (3, 2), (3, 4)])
def test_repeats_as_in_timm(num_samples, repeats, world_size):
    ours = TrainSampler(num_samples, 5, world_size, repeats=repeats)
    theirs = RepeatAugSampler(range(num_samples), world_size, 0, num_repeats=repeats)
    assert len(ours) == len(theirs) // 5
    indices = sum(epoch_of(num_samples, 5, world_size, repeats=repeats), [])
    assert len(set(indices)) == len(indices), "each repeat has its own index"
    images = [index % num_samples for index in indices]
    counts = sorted({images.count(image) for image in images})
    assert counts[-1] == repeats and sum(images.count(image) < repeats for image in set(images)) <= 1
    assert max(indices) < repeats * num_samples


def test_repeats_of_an_image_go_to_different_processes():
    ranks = [next(iter(TrainSampler(30, 4, 3, rank, repeats=3))) for rank in range(3)]
    for indices in zip(*ranks, strict=True):
        assert len({index % 30 for index in indices}) == 1 and len(set(indices)) == 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 9])
def test_evaluation_takes_each_image_once(world_size):
    shares = [EvalSampler(7, world_size, rank) for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == list(range(7))
    assert sum(len(share) for share in shares) == 7


@pytest.mark.parametrize("options", [(0, 1), (1, 0), (4, 1, 2, 2), (4, 1, 1, -1), (4, 1, 1, 0, 1, 0)])
def test_wrong_counts_are_refused(options):
    with pytest.raises(ValueError, match="must be positive"):
        TrainSampler(*options)


def test_wrong_rank_is_refused():
    with pytest.raises(ValueError, match="rank 2 of 2"):
        EvalSampler(7, 2, 2)
