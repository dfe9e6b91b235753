"""All vocabulary-sized work: from hidden states and the LM head to per-token numbers, in chunks.

Logits [N, V] are the largest tensor of a language model (2,840 positions of Llama 3's vocabulary are 1.5 GB in
float32), and a loss wants one or three numbers a row. So rows are taken a chunk at a time, and no tensor of size
N x V outlives its chunk.

The gradient needs no second pass while the head is frozen: log pi(t), KL(ref || pi) and KL(pi || ref) are scalars
of a row, so the loss sends back one weight for each, and each weight multiplies a vector of size H that the forward
pass can take while the row's logits are at hand:

    d log pi(t) / dh = W[t] - p W      d KL(ref || pi) / dh = (p - q) W      d KL(pi || ref) / dh = (p * (log p/q - KL)) W

with p = softmax(W h), q the reference's. A trainable head also needs sum_n weight_n * (row's gradient) x h_n, for
which the weights must be known: then the backward pass recomputes the chunks.

Legend: N positions, H width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}  # C * V: 64 MB and 512 MB of float32
CHUNK_ROWS = 128  # at least: matrix products of fewer rows are slow


class TokenStats(NamedTuple):
    """Per-position numbers, each [N] in float32 (float64 for float64 input), or None where not asked for.

    The KL divergences are 0 at positions outside ``kl_positions``.
    """

    logps: Tensor
    ref_logps: Tensor | None
    kl_forward: Tensor | None
    kl_reverse: Tensor | None


def token_stats(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    ref_hidden: Tensor | None = None,
    ref_head: Tensor | None = None,
    kl_forward: bool = False,
    kl_reverse: bool = False,
    kl_positions: Tensor | None = None,
    chunk_rows: int | None = None,
) -> TokenStats:
    """log pi(target) at every position and, against a reference, log ref(target) and the KL in either direction.

    hidden: [N, H], the policy's states at the predicting positions.      head: [V, H], the LM head's weight.
    targets: [N] int64 in [0, V).     ref_hidden: [N, H]; ref_head: [V, H], default ``head``: the frozen reference's.
    kl_positions: [N] bool, where the KL is wanted (default everywhere). chunk_rows: rows worked on at a time.
    Gradients flow to ``hidden`` and ``head``, never to the reference. The sums run in float32 at least.
    Raises ValueError if a KL is asked for without ``ref_hidden``.
    """
    if (kl_forward or kl_reverse) and ref_hidden is None:
        raise ValueError("a KL divergence needs ref_hidden")
    if ref_hidden is not None:
        ref_hidden = ref_hidden.detach()
        ref_head = (head if ref_head is None else ref_head).detach()
    wanted = None
    if kl_forward or kl_reverse:
        wanted = torch.ones_like(targets, dtype=torch.bool) if kl_positions is None else kl_positions
    rows = chunk_rows or max(CHUNK_ROWS, CHUNK_ELEMENTS.get(hidden.device.type, 2**24) // head.shape[0])
    logps, ref_logps, forward, reverse = _TokenStats.apply(
        hidden, head, targets, ref_hidden, ref_head, wanted, kl_forward, kl_reverse, rows
    )
    return TokenStats(
        logps,
        None if ref_hidden is None else ref_logps,
        forward if kl_forward else None,
        reverse if kl_reverse else None,
    )


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, ref_hidden, ref_head, wanted, kl_forward, kl_reverse, rows):
        ctx.directions, ctx.rows = (kl_forward, kl_reverse), rows
        head_grad, hidden_grad = ctx.needs_input_grad[1], ctx.needs_input_grad[0]
        take_gradient = hidden_grad and not head_grad
        wide = _accumulation_dtype(hidden)
        stats = hidden.new_zeros(4, len(targets), dtype=wide)
        grads = [None, None, None]  # of logps, kl_forward, kl_reverse with respect to hidden, each [N, H]
        if take_gradient:
            grads = [torch.zeros_like(hidden) if asked else None for asked in (True, kl_forward, kl_reverse)]
        head_wide, ref_wide = _operand(head), None if ref_head is None else _operand(ref_head)
        buffer = _buffer(head_wide, min(rows, len(targets)))
        for start in range(0, len(targets), rows):
            c = slice(start, start + rows)
            chunk = _Chunk(c, hidden, head_wide, targets, ref_hidden, ref_wide, wanted, buffer)
            stats[0, c] = chunk.logps
            if ref_hidden is not None:
                stats[1, c] = chunk.ref_logps
            if chunk.kl_rows is not None:
                stats[2, c].index_copy_(0, chunk.kl_rows, chunk.kl_forward())
                stats[3, c].index_copy_(0, chunk.kl_rows, chunk.kl_reverse())
            if take_gradient:
                chunk.write_hidden_gradients(grads, c)
        if take_gradient:
            ctx.save_for_backward(*grads)
        elif head_grad:
            ctx.save_for_backward(hidden, head, targets, ref_hidden, ref_head, wanted)
        ctx.recompute = head_grad
        logps, ref_logps, forward, reverse = (row.clone() for row in stats)
        ctx.mark_non_differentiable(ref_logps)
        return logps, ref_logps, forward, reverse

    @staticmethod
    @once_differentiable
    def backward(ctx, logps_grad, _, forward_grad, reverse_grad):
        weights = (logps_grad, forward_grad, reverse_grad)  # each [N]
        if not ctx.recompute:
            hidden_grad = None
            for weight, grad in zip(weights, ctx.saved_tensors, strict=True):
                if grad is not None:
                    part = weight.to(grad.dtype).unsqueeze(1) * grad
                    hidden_grad = part if hidden_grad is None else hidden_grad + part
            return hidden_grad, *[None] * 8
        hidden, head, targets, ref_hidden, ref_head, wanted = ctx.saved_tensors
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        head_grad = torch.zeros_like(head, dtype=_accumulation_dtype(head))
        head_wide, ref_wide = _operand(head), None if ref_head is None else _operand(ref_head)
        buffer = _buffer(head_wide, min(ctx.rows, len(targets)))
        for start in range(0, len(targets), ctx.rows):
            c = slice(start, start + ctx.rows)
            chunk = _Chunk(c, hidden, head_wide, targets, ref_hidden, ref_wide, wanted, buffer)
            logits_grad = chunk.logits_gradient(*(weight[c] for weight in weights), ctx.directions)
            if hidden_grad is not None:
                hidden_grad[c] = _matmul(logits_grad.to(head_wide.dtype), head_wide).to(hidden.dtype)
            head_grad += _matmul(logits_grad.t().to(head_wide.dtype), hidden[c].to(head_wide.dtype))
        return hidden_grad, head_grad.to(head.dtype), *[None] * 7


class _Chunk:
    """C rows, and what can be read off their logits; ``buffer`` holds one [C, V] matrix from chunk to chunk."""

    def __init__(self, c, hidden, head, targets, ref_hidden, ref_head, wanted, buffer):
        self.head, self.targets = head, targets[c].unsqueeze(1)
        self.kl_rows = None
        if wanted is not None and wanted[c].any():
            self.kl_rows = wanted[c].nonzero().squeeze(1)
        if ref_hidden is not None:
            ref_logits = _matmul(ref_hidden[c].to(ref_head.dtype), ref_head.t(), buffer)
            self.ref_logps, _, _, self.log_q = _softmax(ref_logits, self.targets, self.kl_rows)
        logits = _matmul(hidden[c].to(head.dtype), head.t(), buffer)
        self.logps, self.exps, self.total, log_p = _softmax(logits, self.targets, self.kl_rows)
        if self.kl_rows is not None:
            self.q, self.p_kl = self.log_q.exp(), log_p.exp()
            self.log_ratio = log_p.sub_(self.log_q)  # log p/q; the last use of log_p

    def kl_forward(self) -> Tensor:
        return -(self.q * self.log_ratio).sum(-1)

    def kl_reverse(self) -> Tensor:
        return (self.p_kl * self.log_ratio).sum(-1)

    def _kl_gradients(self) -> tuple[Tensor, Tensor]:
        """Of both divergences with respect to the logits of ``kl_rows``."""
        reverse = self.p_kl * (self.log_ratio - self.kl_reverse().unsqueeze(1))
        return self.p_kl - self.q, reverse

    def write_hidden_gradients(self, grads: list[Tensor | None], c: slice) -> None:
        """The gradient of each statistic with respect to hidden, for weights of one, into rows ``c`` of ``grads``."""
        dtype = grads[0].dtype
        if self.kl_rows is not None:
            rows = self.kl_rows + c.start
            for grad, logits_grad in zip(grads[1:], self._kl_gradients(), strict=True):
                if grad is not None:
                    grad[rows] = _matmul(logits_grad.to(self.head.dtype), self.head).to(dtype)
        target_rows = self.head[self.targets.squeeze(1)].to(self.exps.dtype)
        mean_row = _matmul(self.exps.to(self.head.dtype), self.head).div_(self.total)
        grads[0][c] = (target_rows - mean_row).to(dtype)

    def logits_gradient(self, logps_weight, forward_weight, reverse_weight, directions) -> Tensor:
        """[C, V]: sum over the statistics of weight x gradient with respect to the logits."""
        if self.kl_rows is not None:
            kl = zip(directions, self._kl_gradients(), (forward_weight, reverse_weight), strict=True)
            kl_grad = sum(g * w[self.kl_rows].unsqueeze(1) for asked, g, w in kl if asked)
        weight = logps_weight.unsqueeze(1)
        gradient = self.exps.mul_(-weight / self.total)  # the last use of exps
        gradient.scatter_add_(1, self.targets, weight.to(gradient.dtype))
        if self.kl_rows is not None:
            gradient.index_add_(0, self.kl_rows, kl_grad)
        return gradient


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _operand(weight: Tensor) -> Tensor:
    """The head as matrix products take it: bfloat16 stays so on CUDA, whose products accumulate in float32."""
    return weight if weight.is_cuda else weight.to(_accumulation_dtype(weight))


def _softmax(logits: Tensor, targets: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(log p of the targets [C], exp(logits - max) in the place of ``logits``, its sums [C, 1], log p of rows ``keep``)."""
    logits -= logits.amax(-1, keepdim=True)
    picked, kept = logits.gather(1, targets), None if keep is None else logits[keep]
    total = logits.exp_().sum(-1, keepdim=True)
    log_total = total.log()
    return (picked - log_total).squeeze(1), logits, total, None if keep is None else kept.sub_(log_total[keep])


def _buffer(head: Tensor, rows: int) -> Tensor | None:
    """Room for the logits of one chunk. CUDA's allocator finds it by itself; the CPU's asks the system every time."""
    return None if head.is_cuda else head.new_empty(rows, head.shape[0])


def _matmul(a: Tensor, b: Tensor, buffer: Tensor | None = None) -> Tensor:
    """a @ b with a float32 result (float64 for float64), also from bfloat16 operands; in ``buffer`` where there is one."""
    if a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b, out=None if buffer is None else buffer[: len(a)])
