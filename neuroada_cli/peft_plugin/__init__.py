"""NeuroAda as a method of the PEFT library: importing this package registers it.

    import neuroada_cli.peft_plugin
    model = get_peft_model(model, neuroada_cli.peft_plugin.NeuroAdaConfig(k=1, task_type="CAUSAL_LM"))

From then on whatever PEFT does with an adapter works: `PeftModel.from_pretrained` (also of the folders that
`neuroada train` writes), `AutoPeftModel`, `disable_adapter`, several adapters, `merge_and_unload`, TRL's
trainers. What it saves, `neuroada merge` and `neuroada eval` read.

PEFT 0.21 has no public way to add a method from outside: a member is added to its `PeftType`.
"""

from __future__ import annotations

from neuroada_cli.methods.facts import require_package

require_package("peft", "peft_plugin")

from neuroada_cli.machine.quiet import quiet_bitsandbytes  # noqa: E402

quiet_bitsandbytes()

from neuroada_cli.peft_plugin.register import register  # noqa: E402

register()

from neuroada_cli.peft_plugin.config import NeuroAdaConfig  # noqa: E402
from neuroada_cli.peft_plugin.layer import NeuroAdaLinear  # noqa: E402
from neuroada_cli.peft_plugin.tuner import NeuroAdaModel  # noqa: E402

__all__ = ["NeuroAdaConfig", "NeuroAdaLinear", "NeuroAdaModel"]
