"""Captions of datasets, measured from images and masks."""
