"""What a run is held against: the model as transformers loads it, plain autograd, and a merge by hand.

Each raises AssertionError with what is not as it should be.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from dense_oracle import dense_gradients
from swept_types import SIDE, Swept, loader
from torch import Tensor, nn

from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.find import open_found
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.delta.model import attach
from neuroada_cli.delta.targets import parameter_name, target_of
from neuroada_cli.hub.padding import reads_padding
from neuroada_cli.selection.file import read_selection

K = 2
GRADIENTS = 1e-3  # of a layer's largest: sums in another order


class Loaded:
    """A type's model as transformers loads it from `base`, and what it gives for inputs that never change.

    Frozen, as a base is: torch chooses another product of matrices for weights that require gradients, even
    where none is made (`findings/linear-and-requires-grad.sh`).
    """

    def __init__(self, swept: Swept, labels: int | None) -> None:
        self.swept, self.labels = swept, labels

    def model(self, folder: str = "base", dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(0)  # a fresh head is the same each time
        more = {} if self.labels is None else {"num_labels": self.labels, "ignore_mismatched_sizes": True}
        model = loader(self.swept.task).from_pretrained(folder, dtype=dtype, **more).eval()
        return model.requires_grad_(False)

    def outputs(self, model: nn.Module) -> Tensor:
        """Of two rows."""
        chance = torch.Generator().manual_seed(0)
        tokens_BS = torch.arange(10, 50).view(2, 20)
        if self.swept.task == "image-classification":
            pixels = torch.randn(2, 3, SIDE, SIDE, generator=chance)
            return model(pixel_values=pixels.to(next(model.parameters()).dtype)).logits
        if self.swept.task == "seq2seq-lm":
            return model(input_ids=tokens_BS, decoder_input_ids=tokens_BS[:, :7], use_cache=False).logits
        if self.swept.task == "sequence-classification":
            tokens_BS = tokens_BS.clone()
            tokens_BS[:, -1] = 2  # some find a row's end by it
        return model(input_ids=tokens_BS).logits


def selected(loaded: Loaded, file: Path) -> None:
    """Of every neuron of the loaded model the inputs with the largest weights."""
    model = loaded.model()
    for name, index_OK in read_selection(file).indices.items():
        target = target_of(model, name)
        for rows, weight_OI in target.layout.matrices(target.weight.detach()):
            chosen_OK = weight_OI.abs().gather(1, index_OK[rows].long()).sort(1, descending=True).values
            assert torch.equal(chosen_OK, weight_OI.abs().topk(K, 1).values), f"{name}: others are larger"


def equal_at_zero(loaded: Loaded, file: Path, dtype: torch.dtype) -> None:
    """Attached the base to the last bit, with gradients and without; in fp32 with a dense model's gradients.

    With gradients the base is the model with frozen weights, or with weights that train: some choose another
    kernel of attention by that (Doge's mask is computed).
    """
    model, indices = loaded.model(dtype=dtype), read_selection(file).indices
    with torch.no_grad():
        quiet = loaded.outputs(model)
    found = []
    for trains in (True, False):
        model.requires_grad_(trains)
        found.append(loaded.outputs(model).detach())
    wanted = dense_gradients(model, indices, loaded.outputs) if dtype == torch.float32 else {}
    model.requires_grad_(False)
    layers = attach(model, indices)
    with torch.no_grad():
        assert torch.equal(loaded.outputs(model), quiet), "differs from the base"
    made = loaded.outputs(model)
    assert any(torch.equal(made, base) for base in found), "differs from the base where gradients are made"
    if wanted:
        made.float().square().sum().backward()
    for name, grad_OK in wanted.items():
        grad = layers[name].delta.grad
        found_OK = torch.zeros_like(grad_OK) if grad is None else grad
        off = float((found_OK - grad_OK).abs().max()) / (float(grad_OK.abs().max()) or 1.0)
        assert off < GRADIENTS, f"{name}: its gradient is off by {off:.2g}"


def trained(run: Path, said: str) -> None:
    """Every delta moved, but for those of layers that the run says get no gradient."""
    deltas = read(run).deltas
    still = [name for name, delta_OK in deltas.items() if not bool(delta_OK.any())]
    assert len(still) < len(deltas), "no delta moved"
    if still:
        assert "no gradient" in said, f"{len(still)} layers did not move and nobody said so: {still[0]}"


def merged(loaded: Loaded, run: Path, out: Path) -> None:
    """To the last bit the attached model, as transformers loads it; what is no target is the base's."""
    attached = adapted.load(str(run))
    model, base = loaded.model(str(out)), loaded.model().state_dict()
    ours, theirs = attached.model.state_dict(), model.state_dict()
    configs = (json.loads((folder / "config.json").read_text()) for folder in (Path("base"), out))
    merged_config(loaded, *configs)
    assert attached.adapter is not None
    targets = {parameter_name(model, name) for name in attached.adapter.selection.indices}
    changed = {theirs[name].data_ptr() for name in targets | set(attached.adapter.whole)}
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name]), f"{name} is another when merged"
        if tensor.data_ptr() not in changed:
            assert torch.equal(tensor, base[name]), f"{name} is no target, and changed"
    with torch.no_grad():
        same = torch.equal(loaded.outputs(model), loaded.outputs(attached.model))
    assert same, "answers otherwise when merged"


def merged_config(loaded: Loaded, base: dict[str, Any], merged: dict[str, Any]) -> None:
    """The base's config; only what is listed may be another, and the padding token only where it is read."""
    free = {"dtype", "torch_dtype"}
    base, merged = untyped(base), untyped(merged)
    if loaded.labels is not None:
        free |= {"architectures", "id2label", "label2id", "problem_type"}
        if base.get("pad_token_id") is None and reads_padding(loaded.model()):
            free.add("pad_token_id")
    other = {key for key in {*base, *merged} - free if base.get(key) != merged.get(key)}
    assert not other, f"the merged config differs in {', '.join(sorted(other))}"


def untyped(config: dict[str, Any]) -> dict[str, Any]:
    """Without the data types that its parts name."""
    parts = {key: part for key, part in config.items() if isinstance(part, dict)}
    bare = {key: untyped({n: v for n, v in part.items() if "dtype" not in n}) for key, part in parts.items()}
    return config | bare


def answered(first: Path, second: Path) -> None:
    """Two evaluations have the same predictions."""
    one, other = (next(each.glob("predictions/*.jsonl")).read_text() for each in (first, second))
    assert one.strip(), "nothing was answered"
    assert one == other, "the merged model answers otherwise"


def read(run: Path) -> Adapter:
    return adapters.read_adapter(open_found(str(run)))
