"""What the plugin says when it cannot go on."""

from __future__ import annotations


class DraftFolderError(ValueError):
    """One line: what was expected, what came, what to do."""
