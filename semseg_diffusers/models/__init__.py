"""Mask-guided networks. Each file is self-contained, so that it can lie beside the weights on the Hub."""
