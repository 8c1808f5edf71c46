"""NeuroAda as a command-line tool: a few trainable weights per neuron, merged into a plain checkpoint."""

__version__ = "0.1.0"
