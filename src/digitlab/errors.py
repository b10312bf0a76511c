"""The errors that the command line turns into exit codes."""


class InputError(ValueError):
    """Bad input: exit code 2. The message names the value, the rule and the remedy."""


class RunError(Exception):
    """Training failed after it had started: exit code 1. The message names the last checkpoint."""
