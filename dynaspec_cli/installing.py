"""What the user is told to run where a part is missing: the one place for such commands.

dynaspec is on no package index, so its extras are installed from a checkout.
"""

from __future__ import annotations

EXTRAS = ("demo", "peers", "ray", "serve", "test")


def extra(name: str) -> str:
    """The command that installs the extra ``name``."""
    if name not in EXTRAS:
        raise ValueError(f"expected one of {', '.join(EXTRAS)}, got {name!r}")
    return f"pip install --no-build-isolation '.[{name}]' in a checkout of dynaspec"


VLLM_PLUGIN = "pip install ./integrations/vllm in a checkout of dynaspec"
REBUILD = "pip install --no-build-isolation . in a checkout of dynaspec"
REBUILD_CUDA = f"DYNASPEC_BUILD=cuda {REBUILD}"
