"""The page of a training run: read from its folder, laid out as one self-contained HTML file."""
