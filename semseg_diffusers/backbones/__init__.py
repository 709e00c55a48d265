"""Pretrained image networks as backbones: features by which images are compared, segmented and generated."""
