"""Training, quantization, robust aggregation and replay: torch and numpy, no network (DESIGN 6).

Start at `learner`: it is all that the layers above use.
"""
