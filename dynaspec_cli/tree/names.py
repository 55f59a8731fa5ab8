"""Names of the tree policies, for the command line; importing this module imports no torch.

The policies themselves are in registry.py, which has an entry for each of these names.
"""

from __future__ import annotations

TREE_NAMES = ("chain", "specinfer", "sequoia", "eagle2", "ddd", "dyspec")
