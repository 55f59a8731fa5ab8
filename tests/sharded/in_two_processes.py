"""Run by torchrun: rank 0 writes what ``cases`` gives, the others follow. MODEL FOLDERS OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import everything

from dynaspec_cli.main import describe
from dynaspec_cli.target.load import load
from dynaspec_cli.target.sharded.follow import follow
from dynaspec_cli.target.sharded.launch import launched
from dynaspec_cli.target.sharded.load import leave

if __name__ == "__main__":
    launch = launched()
    assert launch is not None
    if launch.rank:
        sys.exit(follow(launch, describe))
    model, folders, out = sys.argv[1:]
    try:
        target, tokenizer = load(model, "float32", "auto", 1)
        Path(out).write_text(everything(target, tokenizer, json.loads(folders)))
    finally:
        leave(0)
