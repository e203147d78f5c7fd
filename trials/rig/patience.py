"""Limits against hangs, in seconds; nothing that works comes near them, on a machine ten times busier than any."""

# Of a program or job that a test starts. pytest's own limit, in pyproject.toml, is larger.
HANG_SECONDS = 1200
# Of a rank in a collective: the rank then says where it waited, before the job is ended from outside.
COLLECTIVE_SECONDS = 600
