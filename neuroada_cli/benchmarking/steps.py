"""The same training step of every method, interleaved.

In every round each method takes one step, in an order that moves on by one place per round; a method's figure
is the median over the rounds of its time over the floor's time in the same round. So a slow spell of a shared
machine hits all of them, and no method always follows the same one.

All methods work on one set of frozen weights in memory. Those that write into it (NeuroAda folds its deltas,
the mask-based method steps the chosen entries) lay their own values in before their turn and put the frozen
ones back after it, outside the clock; only full fine-tuning has weights of its own.

O = output neurons, I = inputs, K = chosen inputs per neuron, B = rows, S = tokens per row
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from neuroada_cli.benchmarking.peers import folds, owns_weights
from neuroada_cli.data.batch import Batch, Encoded, Features, collate
from neuroada_cli.delta.layout import layout_of
from neuroada_cli.delta.quantized import is_quantized
from neuroada_cli.errors import RecipeError
from neuroada_cli.loop.loss import LOSSES
from neuroada_cli.loop.optim import OptimSettings, adamw
from neuroada_cli.loop.step import train_step
from neuroada_cli.memory import copy_structure
from neuroada_cli.methods.protocol import Method

# Small enough that weights stay what they are over a bench; its value costs no time.
SETTINGS = OptimSettings(lr=1e-6)


@dataclass
class Contender:
    """A method on its copy of the module graph. seconds has one entry per round."""

    name: str
    k: int | None
    method: Method
    model: nn.Module
    optimizer: torch.optim.Optimizer
    guest: Guest
    seconds: list[float] = field(default_factory=list)

    @property
    def trainable(self) -> int:
        return trainable(self.name, self.optimizer, self.guest)


@dataclass(frozen=True)
class Timing:
    """seconds is the method's own median; ratio, low and high are median and quartiles over the floor."""

    seconds: float
    ratio: float
    low: float
    high: float


class Guest:
    """The entries of shared weights that a method changes: its values in its turn, the base's otherwise.

    count  of the entries
    """

    def __init__(self, model: nn.Module, indices: Mapping[str, Tensor]) -> None:
        self._entries: list[tuple[Tensor, Tensor, Tensor]] = []
        self.count = sum(index_OK.numel() for index_OK in indices.values())
        for name, index_OK in indices.items():
            module = model.get_submodule(name)
            if is_quantized(module):  # deltas stay beside a packed weight
                continue
            assert isinstance(module.weight, Tensor)
            weight = module.weight.detach()
            weight_OI = layout_of(module).rows(weight)
            column_OK = index_OK.to(weight.device, torch.int64)
            self._entries.append((weight_OI, column_OK, weight_OI.gather(1, column_OK)))
        self._own = [base_OK for *_, base_OK in self._entries]

    def enter(self) -> None:
        for (weight_OI, column_OK, _), own_OK in zip(self._entries, self._own, strict=True):
            weight_OI.scatter_(1, column_OK, own_OK)

    def leave(self) -> None:
        self._own = [weight_OI.gather(1, column_OK) for weight_OI, column_OK, _ in self._entries]
        for weight_OI, column_OK, base_OK in self._entries:
            weight_OI.scatter_(1, column_OK, base_OK)


def contender(
    name: str, k: int | None, method: Method, base: nn.Module, indices: Mapping[str, Tensor]
) -> Contender:
    """Attach a method to its own module graph over the weights of `base`."""
    if owns_weights(name):
        model = copy_structure(base, lambda tensor: tensor.detach().clone())
    else:
        model = copy_structure(base, lambda tensor: tensor.detach())
    model.train()
    flow_to_embeddings(model)
    guest = Guest(model, indices if folds(name) else {})
    try:
        method.attach(model, indices)
    except ValueError as error:
        raise RecipeError(f"the model {error}", name, "choose another method") from None
    return Contender(name, k, method, model, adamw(model, method, SETTINGS), guest)


def flow_to_embeddings(model: nn.Module) -> None:
    """Every step carries its gradient down to the embeddings' output.

    The floor does by definition. The others would save the first block's last products, which is nothing in
    a deep model but would flatter them in one that is cut to a block or two.
    """

    def ask(_: nn.Module, __: tuple[Tensor, ...], embedded_BSH: Tensor) -> Tensor:
        return embedded_BSH.requires_grad_(True)

    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    table = getattr(embeddings, "weight", None)  # of patches of a picture there is none
    for module in model.modules():  # an encoder-decoder looks its tokens up in two modules with one table
        shares = isinstance(module, nn.Embedding) and module.weight is table
        if module is embeddings or shares:
            module.register_forward_hook(ask)


def trainable(name: str, optimizer: torch.optim.Optimizer, guest: Guest) -> int:
    """Numbers that a method may change: of the mask-based one only what the mask lets through."""
    if name == "floor":
        return 0
    if folds(name):
        return guest.count
    return sum(p.numel() for group in optimizer.param_groups for p in group["params"])


@dataclass(frozen=True)
class RealRows:
    """Encoded rows in the order of their data set; a batch takes the first ones, over again if need be."""

    encoded: Sequence[Encoded]
    pad_id: int
    source: str
    features: Features | None = None

    def batch(self, rows: int, device: str) -> Batch:
        taken = [self.encoded[i % len(self.encoded)] for i in range(rows)]
        return collate(taken, self.pad_id, self.features).to(device)


def random_batch(
    vocabulary: int, kind: str, rows: int, sequence: int, device: str, seed: int = 0, pairs: bool = False
) -> Batch:
    """Rows of random tokens, none padded, every token learnt (or one class per row).

    pairs  for an encoder-decoder: the same tokens again for its decoder
    """
    generator = torch.Generator().manual_seed(seed)
    # small numbers are often special: RoBERTa's padding token is 1
    tokens_BS = torch.randint(min(4, vocabulary - 1), vocabulary, (rows, sequence), generator=generator)
    labels = tokens_BS if kind == "generation" else torch.randint(0, 2, (rows,), generator=generator)
    batch = Batch(tokens_BS, torch.ones_like(tokens_BS), labels, list(range(rows)))
    if pairs:
        batch = replace(batch, decoder_BS=tokens_BS, decoder_attention_BS=batch.attention_BS)
    return batch.to(device)


def interleave(
    contenders: Sequence[Contender],
    batch: Batch,
    kind: str,
    rounds: int,
    warmup: int,
    on_round: Callable[[int], None] | None = None,
) -> None:
    """Fill `seconds` of every contender with `rounds` entries, after `warmup` rounds that are not kept."""
    for turn in range(warmup + rounds):
        shift = turn % len(contenders)
        for entry in [*contenders[shift:], *contenders[:shift]]:
            taken = one_step(entry, batch, kind)
            if turn >= warmup:
                entry.seconds.append(taken)
        if on_round is not None:
            on_round(turn + 1)


def clock_of(device: torch.device) -> tuple[str, Callable[[], float]]:
    """(its name, a clock in seconds) for steps there. One thread on a CPU is timed by what it took of the
    processor, so that other work on the machine counts for little; waiting threads take some as well.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "processor", time.process_time
    return "wall", time.perf_counter


def one_step(entry: Contender, batch: Batch, kind: str) -> float:
    """Seconds of the training loop's own step."""
    device = batch.tokens_BS.device
    _, clock = clock_of(device)
    entry.guest.enter()
    _wait(device)
    started = clock()
    learns = entry.method.name != "floor"
    train_step(entry.model, entry.method, entry.optimizer, [batch], LOSSES[kind], step=0, learns=learns)
    _wait(device)
    taken = clock() - started
    entry.guest.leave()
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timing(entry: Contender, floor: Contender) -> Timing:
    """Over the rounds that both were in."""
    ratios = [own / least for own, least in zip(entry.seconds, floor.seconds, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Timing(statistics.median(entry.seconds), statistics.median(ratios), quartiles[0], quartiles[2])
