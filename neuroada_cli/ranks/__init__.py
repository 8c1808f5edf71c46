"""The processes of one run, as torchrun starts them: who is who, what they tell each other, who has gone.

place       what the environment says of it (no torch)
group       dealing work, sums, verdicts, rank 0's values
gradients   one sum over all ranks per optimizer step
launch      start so many processes of a command on this machine
"""
