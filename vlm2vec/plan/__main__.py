"""`python -m vlm2vec.plan`."""

from vlm2vec.errors import run_program
from vlm2vec.plan.run_plan import main

if __name__ == "__main__":
    run_program(main)
