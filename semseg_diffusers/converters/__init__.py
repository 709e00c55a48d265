"""Converts checkpoints of published codebases into pipelines of this package."""
