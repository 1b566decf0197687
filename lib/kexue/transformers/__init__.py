"""Transformers: the block that the chapters share, and what its parts do to signals and gradients."""
