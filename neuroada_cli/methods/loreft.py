"""LoReFT (arXiv:2404.03592): hidden states are edited at a few prompt positions; no weight changes.

After every block, at the first and the last P positions of the prompt (eq. 2 of that paper):

    h + R^T (W h + b - R h)

with one W, b and one R of orthonormal rows per block, shared by its positions. What is generated is never
edited: in a generation only the first forward, the one over the prompt, is.

B = rows, S = sequence length, D = hidden size, R = rank, N = edited positions of all rows together
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from neuroada_cli.errors import ModelError
from neuroada_cli.methods.facts import edited_blocks
from neuroada_cli.methods.state import TrainedByName

ATTRIBUTE = "prompt_positions"  # of a model under LoReFT
# what a forward may take that holds the tokens before it: keys and values, or states
KEPT = {"past_key_values", "cache", "cache_params", "state"}


class LoReft(TrainedByName):
    """One intervention per block that holds a target, fp32 also in a 16-bit model.

    rank       rows of R and W
    dropout    of the edited states, in training
    positions  P: so many at the beginning of the prompt and so many at its end; of a prompt shorter than 2 P
               half of it, so that no position is edited twice
    seed       of the random R and W, apart from the global random stream
    Raises ValueError for a model whose targets lie in no numbered block, or that writes and keeps nothing of
    what it has read: it reads all anew for every token, and where the prompt ended is not known then.
    """

    name = "loreft"

    def __init__(self, rank: int = 8, dropout: float = 0.0, positions: int = 7, seed: int = 0) -> None:
        self._rank, self._dropout, self._positions, self._seed = rank, dropout, positions, seed

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        """`indices` only names the targets, and by them the blocks."""
        if model.can_generate() and not _keeps(model):  # type: ignore[operator]
            raise ValueError("keeps no cache while it writes, so what it has written would be edited, too")
        self.freeze(model)
        where = PromptPositions(self._positions)
        setattr(model, ATTRIBUTE, where)
        base = getattr(model, str(getattr(model, "base_model_prefix", "")), model)
        base.register_forward_pre_hook(where.look, with_kwargs=True)
        width = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            for name in edited_blocks(indices):
                block = model.get_submodule(name)
                device = next(block.parameters()).device
                block.loreft = Intervention(width, self._rank, self._dropout).to(device)
                block.register_forward_hook(_Edit(where))
        self.finish(model, whole)


def _keeps(model: nn.Module) -> bool:
    return bool(KEPT & inspect.signature(model.forward).parameters.keys())


class Intervention(nn.Module):
    """h [N, D] -> h + R^T (W h + b - R h) [N, D], computed in fp32."""

    def __init__(self, width: int, rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        if rank > width:
            raise ValueError(f"has states of {width} numbers, too few for rank {rank}")
        rotate = nn.Linear(width, rank, bias=False)
        nn.init.orthogonal_(rotate.weight)
        self.rotate = register_parametrization(rotate, "weight", _Orthonormal())
        self.source = nn.Linear(width, rank)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        h_ND = hidden_ND.float()
        rows_RD: Tensor = self.rotate.weight  # type: ignore[assignment]
        change_NR = self.source(h_ND) - h_ND @ rows_RD.T
        edited_ND: Tensor = self.dropout(h_ND + change_NR @ rows_RD)
        return edited_ND.to(hidden_ND.dtype)


class _Orthonormal(nn.Module):
    """Any [R, D] of full rank -> the orthonormal rows that span the same.

    Not torch's `orthogonal`: of its Householder map, signs are kept on the parameter's diagonal as numbers
    that are cut to whole ones, so the first step with weight decay turns every row into zeros. Here decay
    only scales the parameter, which changes no row.
    """

    def forward(self, free_RD: Tensor) -> Tensor:
        q_DR, r_RR = torch.linalg.qr(free_RD.T)
        rows_RD: Tensor = (q_DR * r_RR.diagonal().sign()).T  # so that orthonormal rows come out as they are
        return rows_RD

    def right_inverse(self, rows_RD: Tensor) -> Tensor:
        return rows_RD


class PromptPositions:
    """Which positions of the running forward are edited; all blocks of a model ask the same one.

    lengths_B  prompt lengths of the next forward's rows; None: all that is not padding is prompt. Whoever
               trains says them before each forward, since a batch holds the answers, too.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.lengths_B: Tensor | None = None
        self.chosen: tuple[Tensor, Tensor] | None = None  # rows [N], positions [N]; kept for a recomputation
        self.shape = torch.Size()  # (B, S) of the forward that they are of

    def look(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward of the base model."""
        if _tokens_before((*args, *kwargs.values())) > 0:  # a token that was generated
            self.chosen = None
            return
        tokens_BS = next(
            t for t in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if t is not None
        )
        mask_BS = kwargs.get("attention_mask")
        if mask_BS is None:
            mask_BS = torch.ones(tokens_BS.shape[:2], dtype=torch.int64, device=tokens_BS.device)
        lengths_B, self.lengths_B = self.lengths_B, None
        self.shape = tokens_BS.shape[:2]
        self.chosen = prompt_ends(mask_BS, lengths_B, self.count)


def _tokens_before(given: Iterable[Any]) -> int:
    """Tokens that a forward's cache holds, at least. Caches are told by what they are: transformers 5.24
    calls the argument `cache` that was `past_key_values`, and of some families `cache_params`."""
    return max((_held(each) for each in given if hasattr(each, "get_seq_length")), default=0)


def _held(cache: Any) -> int:
    try:
        return int(cache.get_seq_length())
    except ValueError:  # of states alone (Mamba), which do not say of how many tokens they are
        return int(cache.has_previous_state())


def prompt_ends(mask_BS: Tensor, lengths_B: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """(rows [N], positions [N]) of the first and last `count` tokens of each prompt.

    mask_BS    1 where there is a token; padding is on either side
    lengths_B  tokens of each prompt, from the row's first token on; None: all of them
    """
    lengths_B = mask_BS.sum(dim=1) if lengths_B is None else lengths_B.to(mask_BS.device)
    start_B = mask_BS.argmax(dim=1)
    ends_B = (lengths_B // 2).clamp(max=count)
    at_BS = torch.arange(mask_BS.shape[1], device=mask_BS.device) - start_B[:, None]
    first_BS = (at_BS >= 0) & (at_BS < ends_B[:, None])
    last_BS = (at_BS >= (lengths_B - ends_B)[:, None]) & (at_BS < lengths_B[:, None])
    rows_N, positions_N = (first_BS | last_BS).nonzero(as_tuple=True)
    return rows_N, positions_N


class _Edit:
    def __init__(self, where: PromptPositions) -> None:
        self._where = where

    def __call__(self, block: nn.Module, args: Any, output: Any) -> Any:
        if self._where.chosen is None:
            return None
        hidden_BSD = output if isinstance(output, Tensor) else output[0]
        rows, length = self._where.shape
        # a padded sequence may be longer; a shortened one, or states of other axes, have other positions
        if hidden_BSD.ndim != 3 or len(hidden_BSD) != rows or hidden_BSD.shape[1] < length:
            raise ModelError(
                f"hands states of {tuple(hidden_BSD.shape)} from block to block, not one for each of "
                f"{rows} x {length} tokens, so loreft does not know which are a prompt's ends",
                type(block).__name__,
                "choose another train.method",
            )
        edited_ND = block.loreft(hidden_BSD[self._where.chosen])  # type: ignore[operator]
        edited_BSD = hidden_BSD.index_put(self._where.chosen, edited_ND)
        return edited_BSD if isinstance(output, Tensor) else (edited_BSD, *output[1:])


def tell_prompts(model: nn.Module, lengths_B: Tensor | None) -> None:
    """How long the prompts of the next forward are, for a model that asks."""
    where = getattr(model, ATTRIBUTE, None)
    if where is not None:
        where.lengths_B = lengths_B
