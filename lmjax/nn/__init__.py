"""Layers: they know shapes and axes, not tasks."""
