"""Sampling pipelines: each is saved beside the weights with the files that it imports."""
