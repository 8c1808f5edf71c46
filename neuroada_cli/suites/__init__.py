"""Experiments: a grid of recipes x variants x seeds from one YAML, each cell in a process of its own.

schema.py   what a suite file says
grid.py     its cells, and the content hash under which a finished one is found again
cell.py     one cell: train, then score (`python -m neuroada_cli.suites.cell`)
runner.py   all of them: tuning, resuming, results.json
tables.py   mean and spread over seeds, as a table and a picture
"""
