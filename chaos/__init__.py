"""Real crashes: collections and Storage Services that are killed at any moment, and counted after.

``python -m chaos --kills 1000 --seed 1``, or ``make chaos``.
"""
