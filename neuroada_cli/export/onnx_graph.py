"""A model's forward as an ONNX graph: python -m neuroada_cli.export.onnx_graph MODEL FILE DTYPE TRUST

input_ids and attention_mask int64 [B, S] -> logits [B, S, V] (of a classifier [B, C]); B and S are free.
A classifier whose tokenizer tells the two texts of a row apart takes token_type_ids [B, S] as well. The names
of the inputs are printed at the end.
B = rows, S = tokens per row, V = vocabulary, C = classes
"""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.errors import NumericsError, UserError
from neuroada_cli.export.engines import LARGE
from neuroada_cli.machine import kernels

TYPES = "token_type_ids"
TOLERANCE = 1e-3  # of the logits' spread, in fp32
EXAMPLE = (2, 7)  # rows and tokens of the traced example; neither is a number that a graph would keep


class Logits(nn.Module):
    """The model with nothing but logits coming out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        types = {} if token_type_ids is None else {TYPES: token_type_ids}
        found: Any = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        logits: Tensor = found.logits
        return logits


def write(folder: Path, file: Path, dtype: str, trust_remote_code: bool = False) -> list[str]:
    """Trace, write, and compare with the model itself where ONNX Runtime is installed. Returns the names of
    the graph's inputs.

    Raises ModelError for a model that cannot be loaded, NumericsError for a graph that answers otherwise.
    """
    task: hub.ModelTask = "sequence-classification" if _classifies(folder) else "causal-lm"
    labels = len(hub.read_config(folder).get("id2label") or {}) or None
    kept = labels if task == "sequence-classification" else None
    model = hub.load_model(
        folder, task, dtype, num_labels=kept, attention="eager", trust_remote_code=trust_remote_code
    ).model.eval()
    cast: Any = model
    cast.config.use_cache = False
    tokens_BS = torch.arange(1, 1 + EXAMPLE[0] * EXAMPLE[1]).view(EXAMPLE)
    given = {"input_ids": tokens_BS, "attention_mask": torch.ones_like(tokens_BS)}
    if kept is not None and _takes_types(model, folder, trust_remote_code):
        given[TYPES] = _types(model, tokens_BS)
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            Logits(model),
            tuple(given.values()),
            dynamo=True,
            verbose=False,
            input_names=list(given),
            output_names=["logits"],
            dynamic_shapes={name: {0: rows, 1: length} for name in given},
        )
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    program.save(str(file), external_data=nbytes > LARGE)
    _compare(model, file, dtype, TYPES in given)
    return list(given)


def _takes_types(model: Any, folder: Path, trust_remote_code: bool) -> bool:
    """Whether rows of two texts reach the model with a type per token, as they do in training."""
    said = hub.load_tokenizer(folder, trust_remote_code)("a", "b", verbose=False)
    return TYPES in said and TYPES in inspect.signature(model.forward).parameters


def _types(model: Any, tokens_BS: Tensor) -> Tensor:
    """[B, S] the second half of each row is another text, for a model that knows more than one type."""
    types_BS = torch.zeros_like(tokens_BS)
    if getattr(model.config, "type_vocab_size", 2) != 1:
        types_BS[:, tokens_BS.shape[1] // 2 :] = 1
    return types_BS


def _classifies(folder: Path) -> bool:
    return any("SequenceClassification" in str(n) for n in hub.read_config(folder).get("architectures") or ())


def _compare(model: nn.Module, file: Path, dtype: str, typed: bool) -> None:
    """On rows of another number and length than were traced, one of them padded."""
    try:
        import onnxruntime
    except ImportError:
        return
    session: Any = onnxruntime.InferenceSession(str(file))
    tokens_BS = torch.arange(2, 2 + 3 * 11).view(3, 11)
    mask_BS = torch.ones_like(tokens_BS)
    mask_BS[1, -4:] = 0
    given = {"input_ids": tokens_BS, "attention_mask": mask_BS}
    given |= {TYPES: _types(model, tokens_BS)} if typed else {}
    found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})[0]
    with torch.no_grad():
        wanted = Logits(model)(**given).float()
    kept = mask_BS.bool() if wanted.ndim == 3 else ...
    difference = float((torch.from_numpy(found).float() - wanted)[kept].abs().max() / wanted.std())
    allowed = TOLERANCE if dtype == "fp32" else 100 * TOLERANCE
    if not difference <= allowed:
        raise NumericsError(
            f"the graph's logits differ from the model's by {difference:.2g} of their spread",
            fix="name --dtype fp32, or use another format",
        )


if __name__ == "__main__":
    if sys.argv[4] != "1":
        kernels.keep_out()
    try:
        inputs = write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "1")
        print(f"\n{', '.join(inputs)}")
    except UserError as error:
        sys.exit(error.line())
