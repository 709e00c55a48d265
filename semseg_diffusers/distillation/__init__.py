"""Distillation of a mask-guided diffusion network into one that needs one to four steps."""
