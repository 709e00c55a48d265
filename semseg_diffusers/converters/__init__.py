"""Checkpoints of published codebases become pipelines of this package."""
