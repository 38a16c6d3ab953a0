"""Replaying recordings for evaluation: `evspec eval RECORDING... --out DIR`."""
