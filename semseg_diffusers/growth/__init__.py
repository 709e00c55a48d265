"""Grow a dataset: all stages from masks to a better segmentation network."""
