"""Label sets, readers of the public data sets, preparation, loading with `datasets`, toy scenes.

Light on purpose: import what you need from its module.
"""
