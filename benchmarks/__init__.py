"""Measures what durability costs: runs the unchanged samples, and makes the same model calls directly."""
