"""A drafter for the tiny model: its own last layer, untrained."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_drafter_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    from dynaspec_cli.target.load import load_transformers
    from dynaspec_cli.training.initialise import drafter_config, from_target

    target = load_transformers(tiny_model_dir, "tiny", torch.float32, torch.device("cpu"))
    config = drafter_config(target, num_layers=1, feature_scale=1.0)
    folder = tmp_path_factory.mktemp("tiny-drafter")
    (folder / "config.json").write_text(config.to_json())
    tensors = {k: v.contiguous() for k, v in from_target(config, target).state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
