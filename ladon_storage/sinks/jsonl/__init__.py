"""Folders of JSON Lines."""
