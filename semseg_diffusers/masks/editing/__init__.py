"""Masks as the thing one edits: objects, drawing, places that make sense, operations from a file, new masks.

Light on purpose: import what you need from its module.
"""
