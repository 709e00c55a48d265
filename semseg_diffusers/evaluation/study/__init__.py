"""The study: does a segmentation network get better with synthetic images, and by more than chance?"""
