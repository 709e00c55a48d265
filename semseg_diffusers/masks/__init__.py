"""Cleaning, editing, enriching and counting of segmentation masks."""
