"""Rows in, batches out: where rows come from, what a task makes of them, and how they are encoded."""
