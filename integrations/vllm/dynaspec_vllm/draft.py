"""What every drafter here adds to a vLLM model class: the shortlist, filled by ``load_weights``,
fed by ``forward``, asked by ``get_top_tokens`` (vLLM's hook for an argmax of the model's own).

Verification is vLLM's alone, so a draft can cost time and never change a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.logger import init_logger
from vllm.model_executor.layers.vocab_parallel_embedding import (
    DEFAULT_VOCAB_PADDING_SIZE,
    UnquantizedEmbeddingMethod,
    pad_vocab_size,
)

from dynaspec_vllm.errors import DraftFolderError
from dynaspec_vllm.shortlist import Shortlist, best_of_ranks
from dynaspec_vllm.slices import borders
from dynaspec_vllm.spec import PREFIX, DraftSpec

if TYPE_CHECKING:
    Base = torch.nn.Module
else:
    Base = object

OPTION = "use_local_argmax_reduction"
logger = init_logger(__name__)


class ShortlistDraft(Base):
    """Goes before a vLLM draft model in the bases. ``form``: of the folders that it reads."""

    form: str
    shortlist: Shortlist
    row_of: Tensor | None = None
    """int64 [V]: the head's row of each token, -1 where it has none; None: they are the same."""
    token_of: Tensor | None = None
    """int64 [rows]: the token of each of the head's rows."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        speculative = vllm_config.speculative_config
        if speculative is None:
            raise DraftFolderError(
                "draft folder: it drafts for another model; name it in --speculative-config, not "
                "as the model"
            )
        config = speculative.draft_model_config.hf_config
        spec = DraftSpec.of(config)
        if spec.form != self.form:
            raise DraftFolderError(
                f"draft folder: {type(self).__name__} reads the form {self.form}, the folder has "
                f"{spec.form}; its config.json was changed, copy it again"
            )
        if not getattr(speculative, OPTION, False):
            raise DraftFolderError(
                f'draft folder: without "{OPTION}": true in --speculative-config vLLM would score '
                "the whole vocabulary; add it"
            )
        if getattr(speculative, "draft_sample_method", "greedy") != "greedy":
            raise DraftFolderError(
                'draft folder: "draft_sample_method" other than greedy would draw drafts from the '
                "whole vocabulary; leave it out, which keeps the distribution as well"
            )
        spec.check_target(speculative.target_model_config.hf_text_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.dtype = speculative.draft_model_config.dtype
        ranks = get_tensor_model_parallel_world_size()
        padded = pad_vocab_size(spec.rows, DEFAULT_VOCAB_PADDING_SIZE)
        slices = borders(spec.rows, ranks, math.ceil(padded / ranks))
        if any(begin >= end for begin, end in slices):
            raise DraftFolderError(
                f"draft folder: a head of {spec.rows} rows has none for some of {ranks} ranks; use "
                "fewer"
            )
        _warn_of_large_batches(spec, vllm_config.scheduler_config.max_num_seqs)
        self.shortlist = Shortlist(
            spec, int(config.hidden_size), slices, get_tensor_model_parallel_rank()
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """The drafter's tensors by vLLM's own loader, and the shortlist's. vLLM leaves what a file
        lacks as it happens to be; here it is an error."""
        mine: dict[str, Tensor] = {}
        for parameter in self.parameters():
            if parameter.is_floating_point():
                parameter.data.fill_(torch.nan)
        loaded = super().load_weights(self._drafters(weights, mine))
        # Embeddings and LM head that a head's file lacks become the target's.
        parts = () if self.form == "language-model" else ("embed_tokens", "lm_head")
        shared = [part for part in parts if not getattr(self, f"has_own_{part}", True)]
        for name, parameter in self.named_parameters():
            inherited = any(f"{part}." in name for part in shared)
            if parameter.is_floating_point() and not inherited and bool(parameter.isnan().any()):
                raise DraftFolderError(
                    f"draft folder: its weights lack {name!r} or hold NaN there; copy it again"
                )
        self.shortlist.load(mine, self.dtype)
        self._map_rows()
        return loaded

    def _drafters(
        self, weights: Iterable[tuple[str, Tensor]], mine: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if name.startswith(PREFIX):
                mine[name.removeprefix(PREFIX)] = tensor
            else:
                yield name, tensor

    def _map_rows(self) -> None:
        """EAGLE-3's offsets, as vLLM loaded them, as two lists."""
        offsets = getattr(self, "draft_id_to_target_id", None)
        if offsets is None:
            return
        spec = self.shortlist.spec
        tokens = offsets.data.long() + torch.arange(spec.rows, device=offsets.device)
        if bool(((tokens < 0) | (tokens >= spec.vocab_size)).any()):
            raise DraftFolderError(
                f"draft folder: d2t leads outside the target's {spec.vocab_size} tokens; it was "
                "made for another model"
            )
        rows = torch.full((spec.vocab_size,), -1, dtype=torch.int64, device=offsets.device)
        rows[tokens] = torch.arange(spec.rows, device=offsets.device)
        self.row_of, self.token_of = rows, tokens

    def forward(self, input_ids: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        if input_ids is not None:
            rows = input_ids
            if self.row_of is not None:
                rows = self.row_of[rows.long().clamp(0, self.row_of.numel() - 1)]
            self.shortlist.observe(rows)
        return super().forward(input_ids, positions, *args, **kwargs)

    def get_top_tokens(self, hidden_states: Tensor) -> Tensor:
        """Token ids int64 [n] of the best shortlisted tokens for hidden rows [n, d]."""
        value, row = self.shortlist.best(hidden_states, self._head())
        ranks = len(self.shortlist.slices)
        if ranks > 1:
            # A row's number is exact in float32 up to 2^24, so that one gather serves both.
            pairs = torch.stack([value, row.float()], -1)
            pairs = tensor_model_parallel_all_gather(pairs, dim=-1).view(-1, ranks, 2)
            row = best_of_ranks(pairs[..., 0], pairs[..., 1].long())
        return row if self.token_of is None else self.token_of[row]

    def _head(self) -> Tensor:
        """The rank's rows of the head, which may be the target's. Facts of Python objects alone are
        looked at: nothing waits for the device."""
        head = self.lm_head
        if not isinstance(head.quant_method, UnquantizedEmbeddingMethod):
            raise DraftFolderError(
                f"draft folder: the LM head is quantised ({type(head.quant_method).__name__}), and "
                "rows cannot be taken from it; use a target whose head is not"
            )
        if getattr(head, "bias", None) is not None:
            raise DraftFolderError("draft folder: the LM head has a bias, which is not read")
        shard = head.shard_indices
        mine = self.shortlist.slices[self.shortlist.rank]
        theirs = (shard.org_vocab_start_index, shard.org_vocab_end_index)
        if mine != theirs:
            raise DraftFolderError(
                f"draft folder: expected rows {mine[0]} to {mine[1]} of the LM head on this rank, "
                f"vLLM placed {theirs[0]} to {theirs[1]}"
            )
        return head.weight


def _warn_of_large_batches(spec: DraftSpec, most_rows: int) -> None:
    """Clusters are read once for each row: many rows read more than the head."""
    read = spec.core + spec.recent + most_rows * spec.taken * spec.cluster_size
    if spec.taken and read > spec.rows:
        logger.warning(
            "dynaspec-vllm: a full batch of %d sequences reads %d rows in a draft step, the whole "
            "head has %d; export with fewer --clusters, or lower --max-num-seqs",
            most_rows,
            read,
            spec.rows,
        )
