"""Filters generated images by what a segmentation network reads: labels that it does not find become unknown."""
