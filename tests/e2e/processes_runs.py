"""Run by torchrun, or alone: trains what it is told, run after run, `PATH key=value ... -- PATH key=value ...`."""

import os
import sys
from pathlib import Path

from score_rl.interrupts import Interrupted
from score_rl.processes import leave
from score_rl.settings import load
from score_rl.train import Trainer


def main() -> None:
    (Path(sys.argv[1]).parent / f"pid-{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
    run: list[str] = []
    for word in [*sys.argv[1:], "--"]:
        if word != "--":
            run.append(word)
            continue
        path, *overrides = run
        Trainer(load("arithmetic", overrides), Path(path)).train()
        run = []
    leave()


if __name__ == "__main__":
    try:
        main()
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
