"""What trains: one record and one file per method.

A method turns a loaded model into one that trains (`attach`), names the parameters an optimizer steps, and
says what has to happen around that step (`protocol.Method`). The training loop and the benchmark know nothing
else about it; what is known before it is built stands in its record (`facts.METHODS`), without torch.
"""

from neuroada_cli.methods.facts import METHODS, MethodFacts, Sizes, check_method, facts_of

__all__ = ["METHODS", "MethodFacts", "Sizes", "check_method", "facts_of"]
