"""CPU paths for packed pairs, each tested against a plain version in float64.

A private PyTorch interface, custom operator or autograd function is accepted here and in ``mint.losses.logprobs`` only
if it saves a tenth of a step on a GPU, or a quarter of a step or of its memory on a CPU. None is in use.
"""
