"""Editing of masks: objects, shapes, sensible positions, operations from a file."""
