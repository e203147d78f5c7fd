"""Entry of `python -m vlm2vec.plan`."""

import sys

from vlm2vec.messages.progress import announce_imports

if __name__ == "__main__":
    announce_imports()

from vlm2vec.errors import run_program
from vlm2vec.plan.run_plan import main

if __name__ == "__main__":
    sys.exit(run_program(main))
