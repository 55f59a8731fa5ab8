"""Shape of an EAGLE-style drafter: what config.json of a drafter folder holds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaspec_cli.drafters.files import DrafterFiles
from dynaspec_cli.errors import DynaSpecError

FORMAT = "dynaspec-eagle-1"


@dataclass(frozen=True)
class DrafterConfig:
    """One or more decoder layers over ``gate * f / scale + fc([norm(f); norm(e'); norm(e)])``.

    f is the target's feature at position t (the residual stream before its final norm), e' the
    embedding of the token at t+1, e that of the token at t. The last one is what lets a single
    attention layer copy: the key of a pair carries its own token (e), its value the token that
    followed (e'), so a query with the same last token finds what came next (an induction head in
    one layer). The output, times ``scale``, is the predicted feature at t+1.

    ``normed_features``: f is the feature after the target's final norm, which is what vLLM passes,
    and is not divided by ``scale``; so is the feature that a draft step passes to the next.
    """

    target_name: str
    head_hash: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    activation: str
    eps: float
    attention_scale: float
    rope_theta: float
    window: int
    feature_scale: float
    has_qk_norm: bool
    has_qkv_bias: bool
    has_post_norms: bool
    use_current_token: bool = True
    normed_features: bool = False
    trained_tokens: int = 0
    format: str = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise DynaSpecError(
                f"drafter config: expected format {FORMAT!r}, got {self.format!r}; convert or "
                "retrain the drafter"
            )
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        ):
            if getattr(self, name) < 1:
                raise DynaSpecError(
                    f"drafter config: expected {name} >= 1, got {getattr(self, name)}"
                )
        if self.num_heads % self.num_kv_heads:
            raise DynaSpecError(
                f"drafter config: num_heads {self.num_heads} is no multiple of num_kv_heads "
                f"{self.num_kv_heads}"
            )

    @property
    def inputs(self) -> int:
        """Columns of ``fc``: feature, next token's embedding, by default the current one's."""
        return self.hidden_size * (3 if self.use_current_token else 2)

    @classmethod
    def load(cls, folder: Path) -> DrafterConfig:
        return cls.from_values(DrafterFiles(folder, str(folder)).config, f"drafter {folder}")

    @classmethod
    def from_values(cls, values: dict[str, Any], where: str) -> DrafterConfig:
        """From the values of a config.json; ``where`` it was, for errors."""
        if values.get("format") != FORMAT:
            raise DynaSpecError(
                f"{where}: expected format {FORMAT!r}, got {values.get('format')!r}; "
                "only drafters made by train-drafter load"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        missing = {
            f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING
        } - values.keys()
        if missing:
            raise DynaSpecError(f"{where}: config.json lacks {', '.join(sorted(missing))}")
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"
