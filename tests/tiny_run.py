"""Command lines that the tests of the entry points share."""

from tools.kill_resume import first_difference
from wsfvit.checkpoint.store import CheckpointStore
from wsfvit.train import loop

# A real run in seconds: two updates of a tiny network on the built-in digits.
TINY = ["--dataset", "digits", "--model", "test_resnet", "--img-size", "32", "--num-classes", "10", "--in-chans", "1"]
TINY += ["--mean", "0.13", "--std", "0.31", "--device", "cpu", "-j", "0", "--hflip", "0", "-vb", "500"]
TWO_STEPS = [*TINY, "-b", "2000", "--epochs", "1", "--warmup-epochs", "0", "--opt", "adamw", "--lr", "1e-3"]
TWO_STEPS += ["--no-tensorboard"]


def stop_after(monkeypatch, updates, stop):
    """Calls ``stop`` right after that many updates of the process."""
    done = []

    def counted(state, cfg, plain=loop.update):
        norm = plain(state, cfg)
        done.append(1)
        if len(done) == updates:
            stop()
        return norm

    monkeypatch.setattr(loop, "update", counted)


def state_of(folder):
    content, _ = CheckpointStore(folder).load_newest()
    return content


def assert_equal(one, two):
    assert first_difference(one, two) is None
