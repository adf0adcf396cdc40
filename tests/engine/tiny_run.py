"""Command lines that the tests of the entry points share."""

# A real run in seconds: two updates of a tiny network on the built-in digits.
TINY = ["--dataset", "digits", "--model", "test_resnet", "--img-size", "32", "--num-classes", "10", "--in-chans", "1"]
TINY += ["--mean", "0.13", "--std", "0.31", "--device", "cpu", "-j", "0", "--hflip", "0", "-vb", "500"]
TWO_STEPS = [*TINY, "-b", "2000", "--epochs", "1", "--warmup-epochs", "0", "--opt", "adamw", "--lr", "1e-3"]
TWO_STEPS += ["--no-tensorboard"]
