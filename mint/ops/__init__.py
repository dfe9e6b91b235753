"""Hand-written gradients and CPU paths, each tested against a plain version in float64, and recorded CUDA graphs.

A private PyTorch interface, custom operator or autograd function is accepted here and in ``mint.losses.logprobs`` only
if it saves a tenth of a step on a GPU, or a quarter of a step or of its memory on a CPU. Those in use, with the peak
memory of the second ORPO step at rank 256 (8 layers, width 512, vocabulary 32,000, float32, one thread):

* ``elementwise``: 1,915 MiB, and 2,667 MiB with PyTorch's own operations. Of the three functions, SwiGLU alone gives
  2,544 MiB, with RMSNorm 2,400 MiB, with rotary positions 2,219 MiB. One interface is private,
  ``torch.ops.aten.silu_backward``: SwiGLU's gradient in one pass over memory.
"""
