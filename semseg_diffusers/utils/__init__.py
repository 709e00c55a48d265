"""Files, processes, images and other helpers that know nothing of the rest of the package."""
