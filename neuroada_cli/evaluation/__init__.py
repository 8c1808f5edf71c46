"""From prompts to scores: generation, the protocols' extraction rules, metrics."""
