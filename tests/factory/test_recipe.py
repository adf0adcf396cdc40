"""From arguments to the recipe's objects: what depends on the number of processes."""

import pytest

from wsfvit.cli.train import parse_train_args
from wsfvit.factory.recipe import resolve_grad_accum_steps, resolve_lr
from wsfvit.utils.errors import UserError


@pytest.mark.parametrize(("processes", "steps"), [(1, 16), (2, 8), (4, 4), (8, 2), (16, 1)])
def test_the_global_batch_and_the_learning_rate_do_not_depend_on_the_number_of_processes(processes, steps):
    args = parse_train_args("--batch-size 128 --global-batch-size 2048 --lr-base 0.1".split())
    args.grad_accum_steps = resolve_grad_accum_steps(args, processes)
    assert args.grad_accum_steps == steps
    assert resolve_lr(args, processes) == pytest.approx(0.1 * 2048 / 256)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--batch-size 100 --global-batch-size 2048", "not a multiple of --batch-size 100 x 2"),
        ("--batch-size 128 --global-batch-size 128", "not a multiple of --batch-size 128 x 2"),
        ("--batch-size 4 --global-batch-size 16 --grad-accum-steps 4", "takes --grad-accum-steps 2 here, not 4"),
    ],
)
def test_batches_that_do_not_add_up_are_refused(flags, expected):
    with pytest.raises(UserError, match=expected):
        resolve_grad_accum_steps(parse_train_args(flags.split()), world_size=2)


def test_what_a_run_has_written_down_can_be_its_recipe_again():
    args = parse_train_args("--batch-size 4 --global-batch-size 16 --grad-accum-steps 2".split())
    assert resolve_grad_accum_steps(args, world_size=2) == 2


@pytest.mark.parametrize(
    ("total", "batch", "processes", "fits"),
    [
        (2048, 128, 3, "--global-batch-size 1920"),
        (2048, 96, 4, "--batch-size 64"),
        (100, 128, 3, "--global-batch-size 384"),
    ],
)
def test_a_global_batch_size_that_does_not_fit_names_one_that_does(total, batch, processes, fits):
    argv = ["--global-batch-size", str(total), "--batch-size", str(batch)]
    with pytest.raises(UserError, match=f"not a multiple of --batch-size {batch} x {processes} processes: {fits} fits"):
        resolve_grad_accum_steps(parse_train_args(argv), processes)
    assert resolve_grad_accum_steps(parse_train_args([*argv, *fits.split()]), processes) >= 1
