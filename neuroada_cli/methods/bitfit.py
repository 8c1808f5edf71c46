"""The two smallest baselines: all biases (BitFit, arXiv:2106.10199), and nothing but a fresh head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from neuroada_cli.methods.state import MethodState, WholeParameters, same_names


class BitFit:
    """Every bias of the model trains, with an fp32 master where the model is in 16 bits; no weight does.

    Raises ValueError for a model without a bias (the LLaMA family has none).
    """

    name = "bitfit"
    own_decay = False

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        """`indices` is not used: the biases of all layers train."""
        model.requires_grad_(False)
        self._biases = WholeParameters(model, self.trained(model, whole))
        self._whole = WholeParameters(model, whole)

    def trained(self, model: nn.Module, whole: Sequence[str]) -> list[str]:
        names = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not names:
            raise ValueError("has no bias to train")
        return [name for name in names if name not in whole]

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return self._biases.masters()

    def whole_parameters(self) -> list[nn.Parameter]:
        return self._whole.masters()

    def before_step(self, model: nn.Module, decay: float = 0.0) -> None:
        """Nothing: AdamW does it all."""

    def after_step(self, model: nn.Module) -> None:
        self._biases.round_down()
        self._whole.round_down()

    def state(self, model: nn.Module) -> MethodState:
        return MethodState({}, {**self._biases.state(), **self._whole.state()})

    def load_state(self, model: nn.Module, state: MethodState) -> None:
        parts = (self._biases, self._whole)
        same_names({name: None for part in parts for name in part.state()}, state.whole)
        for part in parts:
            part.load_state({name: state.whole[name] for name in part.state()})


class Head(BitFit):
    """Only the parameters that the base lacks train: a frozen encoder under a fresh head, the control.

    Raises ValueError where there is no such parameter.
    """

    name = "head"

    def trained(self, model: nn.Module, whole: Sequence[str]) -> list[str]:
        if not whole:
            raise ValueError("has no fresh head to train")
        return []
