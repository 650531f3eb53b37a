"""`python -m score_rl`, the same as `score`; launchers want a module."""

from score_rl.cli import main

main()
