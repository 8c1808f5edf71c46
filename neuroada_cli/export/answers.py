"""Whether an engine answers as the model does:

    python -m neuroada_cli.export.answers ENGINE MODEL OUT DTYPE TRUST

Converters leave out settings that they do not know, and say nothing: what they write answers, as another
model. Both compute in fp32, from weights of the export's data type, so that nothing but the computation can
differ. One row of random tokens; encoder-decoders and bare encoders are not compared.

S = tokens of the row, V = vocabulary
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.errors import NumericsError, UserError
from neuroada_cli.export.engines import UNKNOWN
from neuroada_cli.hub.positions import positions_of
from neuroada_cli.machine.memory import available_memory

LENGTH = 256  # far enough for another base of rotary positions to show, and for most of their scalings
TOLERANCE = 1e-2  # of the logits' spread; rounding in another order gives some 1e-3 at most
ODD = 0.1  # of the tokens: an expert that is chosen by a hair may be another one at a few


def check(engine: str, folder: Path, out: Path, dtype: str, trust_remote_code: bool = False) -> str:
    """What was found, in words. Raises ModelError for a model that cannot be loaded, NumericsError for a
    converted one that answers otherwise.
    """
    needed = 4 * sum(hub.open_weights(folder).info(name).nbytes for name in hub.open_weights(folder))
    if needed > available_memory():  # fp32 of 16-bit weights, and as much again while it is made
        return f"{UNKNOWN}: two copies in fp32 would not fit into memory"
    wanted_SV, tokens_S = _model(folder, dtype, trust_remote_code)
    try:
        found_SV = ENGINES[engine](out, tokens_S)[:, : wanted_SV.shape[1]]
    except Exception as error:  # whatever an engine raises where it cannot run here says nothing of its file
        return f"{UNKNOWN}: {engine} raised {type(error).__name__} here"
    off_S = (found_SV - wanted_SV).abs().amax(-1) / wanted_SV.std()
    share = float((~(off_S <= TOLERANCE)).float().mean())
    if share > ODD:
        raise NumericsError(
            f"what it made answers otherwise than the model: at {share:.0%} of {len(tokens_S)} tokens, by up "
            f"to {float(off_S.max()):.2g} of the logits' spread, as where a setting is not heeded"
        )
    return "answers as the model does"


def _model(folder: Path, dtype: str, trust_remote_code: bool) -> tuple[Tensor, Tensor]:
    """(logits [S, V], tokens [S])."""
    model: Any = hub.load_model(folder, "causal-lm", dtype, trust_remote_code=trust_remote_code).model
    model = model.eval().float()
    length = min(LENGTH, positions_of(model) or LENGTH)
    chance = torch.Generator().manual_seed(0)
    tokens_S = torch.randint(model.config.get_text_config().vocab_size, (length,), generator=chance)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=tokens_S[None], use_cache=False).logits[0]
    return logits, tokens_S


def _mlx(out: Path, tokens_S: Tensor) -> Tensor:
    mx: Any = importlib.import_module("mlx.core")
    utils: Any = importlib.import_module("mlx_lm.utils")
    model = utils.load_model(out)[0]
    model.set_dtype(mx.float32)
    return torch.tensor(model(mx.array(tokens_S[None].numpy())).astype(mx.float32).tolist())[0]


def _ctranslate2(out: Path, tokens_S: Tensor) -> Tensor:
    ctranslate2: Any = importlib.import_module("ctranslate2")
    model = ctranslate2.Generator(str(out), compute_type="float32")
    found = model.forward_batch([tokens_S.tolist()]).to(ctranslate2.DataType.float32)
    return torch.from_numpy(importlib.import_module("numpy").array(found))[0]


ENGINES: dict[str, Callable[[Path, Tensor], Tensor]] = {"mlx": _mlx, "ctranslate2": _ctranslate2}


if __name__ == "__main__":
    try:
        print(
            f"\n{check(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5] == '1')}"
        )
    except UserError as error:
        sys.exit(error.line())
