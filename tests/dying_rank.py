"""train.py with a defect: in its first life the process of rank 1 dies before its fourth update.

How is in the environment variable DEATH: ``kill`` (SIGKILL) or ``raise`` (an exception).
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import train  # noqa: E402
from wsfvit.train import loop  # noqa: E402
from wsfvit.utils.errors import run_main  # noqa: E402


def doomed_update(state, cfg, plain=loop.update):
    if state.num_updates == 3 and cfg.world.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if os.environ["DEATH"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("a defect of rank 1")
    return plain(state, cfg)


if __name__ == "__main__":
    loop.update = doomed_update
    run_main(train.main)
