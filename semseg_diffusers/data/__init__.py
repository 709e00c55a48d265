"""Label sets, readers of the public datasets, preparation, loading with `datasets`, toy scenes.

Light on purpose: import what you need from its module.
"""
