"""The pretended GPU lies with the checks of the CUDA path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "cuda_check"))
