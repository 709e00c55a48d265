"""Label sets, readers of the public datasets, preparation, checks, loading with `datasets`.

Light on purpose: import what you need from its module.
"""
