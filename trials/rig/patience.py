"""Time limits against hangs, in seconds, far longer than anything takes, even on a machine ten times busier."""

# For a program or job that a test starts. pytest's own limit, in pyproject.toml, is larger.
HANG_SECONDS = 1200
# For a collective: the rank then prints where it waited, before the job is killed from outside.
COLLECTIVE_SECONDS = 600
