"""Training loops that `benchmarks.step_time` compares, each a program that trains in turns."""
