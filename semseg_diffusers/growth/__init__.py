"""The whole way from a data set to a better segmentation network, and back into the data set."""
