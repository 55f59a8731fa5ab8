"""Weights: data, scales and a format, whatever form they are stored in."""
