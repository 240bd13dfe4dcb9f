"""Smaller models, and smaller changes to them."""
