"""A study: whether synthetic images improve a segmentation network, measured over seeds."""
