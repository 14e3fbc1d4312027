"""A module per op: it defines `OP`, an instance of `parasample.cli.bench.kernels.registry.Op`."""
