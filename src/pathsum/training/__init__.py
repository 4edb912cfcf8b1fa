"""The parts of `pathsum.train`: options, loop, monitor, evaluation, result."""
