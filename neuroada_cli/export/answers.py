"""Whether an engine answers as the model does:

    python -m neuroada_cli.export.answers ENGINE MODEL OUT DTYPE TRUST

Converters leave out settings that they do not know, and say nothing: what they write answers, as another
model. Both compute one row of random tokens in fp32, one after the other, from weights of the export's data
type, so that nothing but the computation can differ.

S = tokens of the row; V = what is compared of a token: a language model's logits, an encoder's output, of an
encoder-decoder how likely the next token is
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.errors import ModelError, NumericsError, UserError
from neuroada_cli.export.engines import UNKNOWN, run_by, staged
from neuroada_cli.files.folders import CONFIG
from neuroada_cli.hub.positions import answer_positions_of, positions_of
from neuroada_cli.machine import kernels

LENGTH = 64  # another base of rotary positions, and most of their scalings, show in nearly all of them
# Of the spread of what is compared. In fp32 the engines differ from transformers by 1e-5, and by 3e-3 where
# they compute GELU by another formula; by a setting that is not heeded 0.05 to 6.
TOLERANCE = 1e-2
ODD = 0.1  # of the tokens: an expert that is chosen by a hair may be another one at a few
SHORT = LENGTH // 4  # a window for the comparison, where the model's own would hardly show
WINDOW, ROTARY = "sliding_window", "rope_parameters"
# what bears on no answer, and would only be tried in vain
IDLE = ("dtype", "dropout", "initializer", "token_id", "use_cache", "version", "architectures", "model_type")

Settings = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A model folder, and what was made of it for the engine, in a data type."""

    engine: str
    folder: Path
    out: Path
    dtype: str
    trust: bool = False

    @property
    def kind(self) -> str:
        return run_by(self.out / "model.bin") if self.engine == "ctranslate2" else "Generator"


def check(pair: Pair) -> str:
    """What could not be told of the result, in words, or nothing. Raises NumericsError for a result that
    answers otherwise than the model.
    """
    stated = hub.read_config(pair.folder)
    window = _window(stated)
    overlooked = False
    if pair.engine == "mlx" and window > LENGTH // 2:  # both read it from a file
        try:
            tokens_S, wanted_SV = _model(pair, stated | {WINDOW: SHORT})
            if _off(_mlx(pair.out, tokens_S, SHORT), wanted_SV)[0] <= ODD:
                return _unseen(pair.engine, stated, len(tokens_S), but=WINDOW)
            overlooked = True
        except (Exception, SystemExit):  # neither need take another one
            pass
    try:
        tokens_S, wanted_SV = _model(pair, stated)
    except UserError as error:
        return f"{UNKNOWN}: {error.line()}"
    except (Exception, SystemExit) as error:
        return f"{UNKNOWN}: transformers raised {type(error).__name__} here"
    if not wanted_SV.isfinite().all():
        return f"{UNKNOWN}: its own answers are no finite numbers"
    try:
        found_SV = _engine(pair, tokens_S, window)
    except (Exception, SystemExit) as error:  # it cannot run here, which says nothing of its file
        return f"{UNKNOWN}: {pair.engine} raised {type(error).__name__} here"
    share, most = _off(found_SV, wanted_SV)
    if share <= ODD and overlooked:
        return (
            f"{pair.engine} passes over {WINDOW}={window}: it answers longer texts otherwise than the model"
        )
    if share <= ODD:
        return _unseen(pair.engine, stated, len(found_SV))
    name = next(_unheeded(pair, stated, found_SV), None)
    said = f"as the model would without {name}" if name else "as where a setting is not heeded"
    raise NumericsError(
        f"what it made answers otherwise than the model, {said}: at {share:.0%} of {len(found_SV)} tokens "
        f"by up to {most:.2g} of the answers' spread"
    )


def _off(found_SV: Tensor, wanted_SV: Tensor) -> tuple[float, float]:
    """(share of the tokens that differ by more than rounding, the largest difference of all); both over as
    many tokens as were found.
    """
    wanted_SV = wanted_SV[: len(found_SV)]
    spread = wanted_SV.std().clamp_min(torch.finfo(torch.float32).tiny)
    off_S = (found_SV[:, : wanted_SV.shape[1]] - wanted_SV).abs().amax(-1) / spread
    return float((~(off_S <= TOLERANCE)).float().mean()), float(off_S.max())


def _window(stated: Settings) -> int:
    """Tokens that a text model looks back; 0: all of them."""
    window = stated.get(WINDOW) if stated.get("use_sliding_window", True) else 0
    return window if type(window) is int else 0


def _unseen(engine: str, stated: Settings, length: int, but: str = "") -> str:
    """What shows in longer texts only."""
    inner = stated.get("text_config")
    stated = inner if isinstance(inner, dict) else stated
    rotary = stated.get(ROTARY) or stated.get("rope_scaling")
    kind = (rotary.get("rope_type") or rotary.get("type")) if isinstance(rotary, dict) else None
    found = [f"{ROTARY} of type {kind}"] * (kind in ("dynamic", "longrope"))
    if but != WINDOW and _window(stated) > length // 2:
        found.append(f"{WINDOW}={_window(stated)}")
    if not found:
        return ""
    said = f"whether {engine} heeds {' and '.join(found)} shows later"
    return f"compared with the model over {length} tokens: {said}"


def _unheeded(pair: Pair, stated: Settings, found_SV: Tensor) -> Iterator[str]:
    """The settings without which the model would answer as the engine does."""
    for name, changed in _without(stated):
        try:
            wanted_SV = _model(pair, changed)[1]
        except Exception:  # no model of that setting alone, so it is not what the engine computes
            continue
        if _off(found_SV, wanted_SV)[0] <= ODD:
            yield name


def _without(stated: Settings) -> Iterator[tuple[str, Settings]]:
    """Name of a setting -> the settings with its default, as far as it changes no shape."""
    from transformers import CONFIG_MAPPING

    usual = CONFIG_MAPPING[stated["model_type"]]().to_dict()
    rotary = stated.get(ROTARY)
    if isinstance(rotary, dict) and rotary.get("rope_type", "default") != "default":
        kept = {key: rotary[key] for key in ("rope_theta", "partial_rotary_factor") if key in rotary}
        yield f"{ROTARY} of type {rotary['rope_type']}", stated | {ROTARY: {"rope_type": "default"} | kept}
    if isinstance(rotary, dict) and rotary.get("partial_rotary_factor", 1) != 1:
        whole = {ROTARY: rotary | {"partial_rotary_factor": 1.0}}
        yield f"partial_rotary_factor={rotary['partial_rotary_factor']}", stated | whole
    caps = {key: None for key, value in stated.items() if key.endswith("softcapping") and value is not None}
    if caps:
        yield " and ".join(f"{key}={stated[key]}" for key in caps), stated | caps
    for key, value in stated.items():
        size = type(value) is int and key != WINDOW
        if key in usual and value != usual[key] and not size and not any(part in key for part in IDLE):
            yield f"{key}={json.dumps(value)}"[:100], stated | {key: usual[key]}
    if _window(stated):
        full: Settings = {WINDOW: None, "use_sliding_window": False}
        if isinstance(stated.get("layer_types"), list):
            full["layer_types"] = ["full_attention"] * len(stated["layer_types"])
        yield f"{WINDOW}={stated[WINDOW]}", stated | full


def _model(pair: Pair, stated: Settings) -> tuple[Tensor, Tensor]:
    """(tokens [S], what the model makes of them under these settings [S, V])."""
    with staged(pair.folder, CONFIG, lambda *_: stated) as folder:
        if pair.kind == "Encoder":
            model: Any = hub.load_headless(folder, pair.dtype, pair.trust)
        else:
            task: hub.ModelTask = "seq2seq-lm" if pair.kind == "Translator" else "causal-lm"
            model = hub.load_model(folder, task, pair.dtype, trust_remote_code=pair.trust).model
    model = model.eval().float()
    bound = min(positions_of(model) or LENGTH, answer_positions_of(model) or LENGTH)
    tokens_S = _tokens(model.config, min(LENGTH, bound - 2))  # an encoder-decoder's ends may be added
    with torch.inference_mode():
        if pair.kind == "Encoder":
            return tokens_S, model(input_ids=tokens_S[None]).last_hidden_state[0]
        if pair.kind == "Generator":
            return tokens_S, model(input_ids=tokens_S[None], use_cache=False).logits[0]
        source_S, target_S = _as_translated(pair.out, model.config.decoder_start_token_id, tokens_S)
        given = {"input_ids": source_S[None], "decoder_input_ids": target_S[None]}
        likely_SV = model(**given, use_cache=False).logits[0].log_softmax(-1)
    return tokens_S, likely_SV.gather(1, tokens_S[:, None])


def _tokens(config: Any, length: int) -> Tensor:
    """[S] drawn from all but those that mean something: the place of padding is counted by some."""
    special = [value for key, value in config.to_dict().items() if key.endswith("token_id")]
    flat = [one for value in special for one in (value if isinstance(value, list) else [value])]
    usable = torch.ones(config.get_text_config().vocab_size, dtype=torch.bool)
    usable[[one for one in flat if type(one) is int and 0 <= one < len(usable)]] = False
    chance = torch.Generator().manual_seed(0)
    from_V = usable.nonzero()[:, 0]
    return from_V[torch.randint(len(from_V), (length,), generator=chance)]


def _as_translated(out: Path, start: int | None, tokens_S: Tensor) -> tuple[Tensor, Tensor]:
    """(what CTranslate2 hands the encoder, and the decoder), of one row that is both."""
    settings = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    number = {name: place for place, name in reversed(list(enumerate(_vocabulary(out, "source"))))}
    source = tokens_S.tolist()
    source = [number[settings["bos_token"]]] * bool(settings.get("add_source_bos")) + source
    source = source + [number[settings["eos_token"]]] * bool(settings.get("add_source_eos"))
    if start is None or settings["decoder_start_token"] is None:
        raise ModelError("each text says by which token its answer begins")
    return torch.tensor(source), torch.tensor([start, *tokens_S.tolist()[:-1]])


def _vocabulary(out: Path, side: str) -> list[str]:
    file = out / f"{side}_vocabulary.json"
    file = file if file.is_file() else out / "shared_vocabulary.json"
    found: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _engine(pair: Pair, tokens_S: Tensor, window: int) -> Tensor:
    if pair.engine == "mlx":
        return _mlx(pair.out, tokens_S)
    compute = CTRANSLATE2[pair.kind]
    try:
        return compute(pair.out, tokens_S)
    except ValueError:  # its generators with a window give the logits of one window at most
        if not 0 < window < len(tokens_S):
            raise
        return compute(pair.out, tokens_S[:window])


def _mlx(out: Path, tokens_S: Tensor, window: int | None = None) -> Tensor:
    os.environ["MLX_ENABLE_TF32"] = "0"  # some GPUs would round fp32 factors to 10 bits
    mx: Any = importlib.import_module("mlx.core")
    utils: Any = importlib.import_module("mlx_lm.utils")
    model = utils.load_model(out, model_config={} if window is None else {WINDOW: window})[0]
    model.set_dtype(mx.float32)
    logits_BSV = model(mx.array(tokens_S[None].numpy())).astype(mx.float32)
    return _of_numpy(importlib.import_module("numpy").array(logits_BSV))[0]


def _generator(out: Path, tokens_S: Tensor) -> Tensor:
    engine: Any = importlib.import_module("ctranslate2")
    model = engine.Generator(str(out), compute_type="float32")
    return _of_numpy(model.forward_batch([tokens_S.tolist()]))[0]


def _encoder(out: Path, tokens_S: Tensor) -> Tensor:
    engine: Any = importlib.import_module("ctranslate2")
    model = engine.Encoder(str(out), compute_type="float32")
    return _of_numpy(model.forward_batch([tokens_S.tolist()]).last_hidden_state)[0]


def _translator(out: Path, tokens_S: Tensor) -> Tensor:
    engine: Any = importlib.import_module("ctranslate2")
    model = engine.Translator(str(out), compute_type="float32")
    source, target = (_vocabulary(out, side) for side in ("source", "target"))
    rows = [[names[n] for n in tokens_S.tolist()] for names in (source, target)]
    found = model.score_batch([rows[0]], [rows[1]])[0].log_probs
    return torch.tensor(found)[: len(tokens_S), None]  # behind it comes the end


def _of_numpy(array: Any) -> Tensor:
    return torch.from_numpy(importlib.import_module("numpy").array(array))


CTRANSLATE2: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "Generator": _generator,
    "Encoder": _encoder,
    "Translator": _translator,
}


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[4] != "1":
        kernels.keep_out()
    try:
        print("\n" + check(Pair(words[0], Path(words[1]), Path(words[2]), words[3], words[4] == "1")))
    except UserError as error:
        print(error.what, file=sys.stderr)
        sys.exit(error.exit_code)
