"""What `bench` measures: shapes, peers, interleaved steps, memory.

shapes      built-in model shapes with random weights
peers       the methods by name, with the floor and the usual way of writing NeuroAda
steps       the same training step of every method, interleaved round by round
footprint   memory of one method at a time, and the largest batch that fits
rows        the result as rows for JSON
tables      the same as a table and a picture
"""
