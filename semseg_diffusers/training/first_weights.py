"""Kept for callers of the earlier name of this module."""

from semseg_diffusers.training.base_model import load_first_weights as load_first_weights
