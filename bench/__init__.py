"""Microbenchmarks of `univg_kernels`: every variant is proved right before it is timed. The command is `bench.ops`."""
