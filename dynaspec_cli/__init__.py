"""dynaspec: faster generation for large-vocabulary language models, with unchanged output."""

__version__ = "0.1.0"
