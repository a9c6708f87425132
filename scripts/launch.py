"""Start the ranks of this server and watch over them; scripts/run_distribute_train.sh calls it."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from src.common.interrupt import leave_while_loading

if __name__ == "__main__":
    leave_while_loading()

from src.common.cli import run_cli
from src.launch.command import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
