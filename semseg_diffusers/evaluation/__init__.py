"""Measures how well images carry the labels they were made from."""
