"""Sampling pipelines: each is one self-contained file that travels to the Hub beside the weights."""
