"""Facts about this machine and a model, for ``dynaspec doctor``, as JSON-ready objects."""
