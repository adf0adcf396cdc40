"""Command lines that the tests of the video commands share."""

# A real run in a second, on the built-in digits.
TINY_MODEL = ["--frames-in", "3", "--frames-out", "2", "--hid-s", "4", "--hid-t", "8", "--mlp-ratio", "1"]
TINY_MODEL += ["--n-s", "2", "--head-dim", "4", "--inter-heads", "2", "--window-size", "4"]
TINY = [*TINY_MODEL, "--size", "30", "32", "--device", "cpu", "-j", "0", "-b", "2", "--samples-per-epoch", "6"]
TINY += ["--val-sequences", "3", "--test-sequences", "3"]
TINY_RUN = [*TINY, "--epochs", "3", "--model-ema", "--model-ema-decay", "0.5", "--experiment", "tiny"]
TINY_RUN += ["--pictures", "1", "--log-interval", "2"]
