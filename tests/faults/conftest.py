"""Which modules here are no tests."""

collect_ignore = ["warm.py"]  # it is for processes that are forked
