"""``python -m dynaspec_cli``."""

from __future__ import annotations

from dynaspec_cli.main import main

main()
