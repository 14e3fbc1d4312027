"""Runs plans on tensors: the Picard solver, its updates, the exchange between ranks."""
