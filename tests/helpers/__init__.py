"""Shared by the tests: tiny components, folders and servers."""
