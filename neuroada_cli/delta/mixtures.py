"""What is special about a mixture of experts: their matrices in one tensor, and the router that chooses.

E = experts, O = output neurons, I = inputs
"""

from __future__ import annotations

from torch import nn

# Modules that hold all experts' matrices in one tensor: class -> attribute -> whether it lies as [E, I, O].
# transformers' other ones say it themselves (`use_experts_implementation`). Taken the wrong way round, inputs
# would train for neurons, so what is not listed is left alone.
FUSED: dict[str, dict[str, bool]] = {
    "Llama4TextExperts": {"gate_up_proj": True, "down_proj": True},
    "JetMoeParallelExperts": {"weight": False},
    "LongcatFlashExperts": {"gate_up_proj": False, "down_proj": False},
    "Step3p7Experts": {"gate_up_proj": False, "down_proj": False},
    "InklingSharedExperts": {"gate_proj": False, "up_proj": False, "down_proj": False},
}


def fused_experts(module: nn.Module) -> dict[str, bool]:
    """Attribute -> whether its matrices lie as [I, O], of a module that holds all experts' in one tensor."""
    known = FUSED.get(type(module).__name__)
    if known is None:
        transposed = vars(module).get("is_transposed")
        if transposed is None or "has_gate" not in vars(module):
            return {}
        known = dict.fromkeys(
            ("gate_up_proj" if vars(module)["has_gate"] else "up_proj", "down_proj"), transposed
        )
    held = module._parameters
    return {
        name: turned for name, turned in known.items() if (p := held.get(name)) is not None and p.ndim == 3
    }


def is_router(module: nn.Module) -> bool:
    """Whether a module chooses experts, by its class."""
    return "Router" in type(module).__name__ or "Gating" in type(module).__name__


def routers_of(model: nn.Module) -> set[str]:
    """The modules that choose experts and what is in them: by class, or `gate`, `router` beside `experts`."""
    modules = dict(model.named_modules())
    found: set[str] = set()
    for name, module in modules.items():
        above, _, own = name.rpartition(".")
        beside = own in ("gate", "router") and f"{above}.experts".lstrip(".") in modules
        if beside or is_router(module):
            found |= {name, *(f"{name}.{inner}" for inner, _ in module.named_modules() if inner)}
    return found
