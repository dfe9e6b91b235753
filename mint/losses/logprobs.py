"""All vocabulary-sized work: from hidden states and the LM head to per-token numbers, block by block.

Logits [N, V] are the largest tensor of a language model (1.5 GB in float32 for 2,840 positions of Llama 3's
vocabulary), and a loss needs one to three numbers per row. So logits are computed for a chunk of rows and a block of
words at a time, small enough for a CPU's cache, and discarded. Sums over the vocabulary are kept relative to the
largest logit so far and rescaled when a later block has a larger one.

With a frozen head the gradient needs no second pass: log pi(t), KL(ref || pi) and KL(pi || ref) are scalars per row, so
the gradient with respect to a hidden state is a weighted sum of three vectors of size H, which the forward pass
computes from the same logits. With p, q the softmax of the policy's logits a and the reference's b, and
E_p[W] the mean of the head's rows under p:

    log pi(t)      = a[t] - lse(a)                           d/dh = W[t] - E_p[W]
    KL(ref || pi)  = E_q[b - a] - lse(b) + lse(a)            d/dh = E_p[W] - E_q[W]
    KL(pi || ref)  = E_p[a - b] - lse(a) + lse(b)            d/dh = E_p[(a - b) W] - E_p[a - b] E_p[W]

A trainable head also needs sum_n weight_n * (row's gradient) x h_n, for which the weights must be known: then the
backward pass recomputes the logits. It also does so for a divergence in half-precision products, where E_p[W] - E_q[W]
would be the difference of two sums of rounded weights.

An adapter on the head adds s (h A^T) B^T to the logits. Its factors stay apart from the weight, whose dtype would round
most of a small update away: the caller passes ``low`` = s h A^T [N, r] and B [V, r], and the logits of a block are
h W^T + low B^T, summed in float32. Its gradients take the second pass, as those of a trainable head do.

Legend: N positions, H width, V vocabulary, r rank, C rows of a chunk, W words of a block, K rows of a chunk with a KL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mint.ops.bfloat16 import bfloat16_products, has_bfloat16
from mint.ops.transfer import upload

BLOCK = {"cpu": (1024, 2048), "cuda": (4096, 16384)}  # rows and words worked on at a time: 8 MB and 256 MB of float32
HALVES = (torch.bfloat16, torch.float16)
LowRank = tuple[Tensor, Tensor]  # low [N, r] and B [V, r], whose product is added to the logits


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
    block: tuple[int, int] | None = None,
    update: LowRank | None = None,
    ref_update: LowRank | None = None,
    ref_logps: Tensor | None = None,
) -> TokenStats:
    """log pi(target) at every position and, against a reference, log ref(target) and the KL in either direction.

    hidden: [N, H], the policy's states at the predicting positions.      head: [V, H], the LM head's weight.
    targets: [N] int64 in [0, V).     ref_hidden: [N, H]; ref_head: [V, H], default ``head``: the frozen reference's.
    kl_positions: [N] bool, where the KL is wanted (default everywhere); on the CPU, since the host reads it.
    block: rows and words worked on at a time.
    update, ref_update: (low [N, r], B [V, r]) of an adapter on either head, which adds low B^T to the logits.
    ref_logps: [N], log ref(target) where it is known: then ``ref_hidden`` is read at ``kl_positions`` alone.
    Gradients flow to ``hidden``, ``head`` and ``update``, never to the reference. The sums run in float32 at least.
    Raises ValueError if a KL is asked for without ``ref_hidden``, or (on the CPU) for a target outside the vocabulary.
    """
    if (kl_forward or kl_reverse) and ref_hidden is None:
        raise ValueError("a KL divergence needs ref_hidden")
    if hidden.device.type == "cpu" and len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(head):
        raise ValueError(f"targets must lie in [0, {len(head)})")
    if ref_hidden is not None:
        ref_head = head if ref_head is None else ref_head
    policy = (hidden, head, *(update or (None, None)))
    ref = (None if x is None else x.detach() for x in (ref_hidden, ref_head, *(ref_update or (None, None))))
    wanted = None
    if kl_forward or kl_reverse:
        wanted = torch.ones(len(targets), dtype=torch.bool) if kl_positions is None else kl_positions
    block = block or BLOCK["cuda" if hidden.is_cuda else "cpu"]
    operand = _operand_dtype(head)
    with torch.autocast(hidden.device.type, enabled=False), bfloat16_products(_rounds_on_cpu(head)):
        logps, computed, forward, reverse = _TokenStats.apply(
            *policy, targets, *ref, wanted, ref_logps is not None, kl_forward, kl_reverse, block, operand
        )
    if ref_logps is None and ref_hidden is not None:
        ref_logps = computed
    return TokenStats(logps, ref_logps, forward if kl_forward else None, reverse if kl_reverse else None)


class _Network(NamedTuple):
    """The factors of one network's logits: hidden W^T, plus low B^T of an adapter on its head."""

    hidden: Tensor  # [N, H]
    head: Tensor  # [V, H]
    low: Tensor | None  # [N, r]
    factor: Tensor | None  # [V, r]

    def cast(self, dtype: torch.dtype) -> _Network:
        """Its head in the dtype of the products."""
        return self._replace(head=self.head.to(dtype), factor=None if self.factor is None else self.factor.to(dtype))

    def rows(self, rows: slice | Tensor) -> _Network:
        """Of these rows, in the head's dtype."""
        low = None if self.low is None else self.low[rows].to(self.head.dtype)
        return self._replace(hidden=self.hidden[rows].to(self.head.dtype), low=low)

    def logits(self, words: slice) -> Tensor:
        """[C, W] in float32 at least."""
        logits = _product(self.hidden, self.head[words])
        if self.low is None or self.factor is None:
            return logits
        return logits.add_(_product(self.low, self.factor[words]))


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, low, factor, targets, *others):
        *ref_inputs, wanted, only_kl, kl_forward, kl_reverse, block, operand = others
        ctx.directions, ctx.block, ctx.operand = (kl_forward, kl_reverse), block, operand
        whole = _Network(hidden, head, low, factor).cast(operand)
        whole_ref = None if ref_inputs[0] is None else _Network(*ref_inputs).cast(operand)
        rounded = (operand in HALVES or _rounds_on_cpu(head)) and (kl_forward or kl_reverse)
        ctx.recompute = any(ctx.needs_input_grad[1:4]) or (ctx.needs_input_grad[0] and rounded)
        take_gradient = ctx.needs_input_grad[0] and not ctx.recompute
        stats = hidden.new_zeros(4, len(targets), dtype=_accumulation_dtype(hidden))
        normalisers = torch.zeros_like(stats[:2])  # of policy and reference
        grads: list[Tensor | None] = [
            None,
            None,
            None,
        ]  # of logps, kl_forward, kl_reverse with respect to hidden, each [N, H]
        if take_gradient:
            grads = [torch.zeros_like(hidden) if asked else None for asked in (True, kl_forward, kl_reverse)]
        for rows in _slices(len(targets), block[0]):
            policy = _Softmax(whole.rows(rows), targets[rows])
            keep, ref, of_ref = _indices(wanted, rows, hidden.device), None, rows
            if only_kl and keep is not None:
                of_ref = keep + rows.start
            if whole_ref is not None and not (only_kl and keep is None):
                ref = _Softmax(whole_ref.rows(of_ref), targets[of_ref])
            chunk = _Chunk(policy, ref, keep, slice(None) if only_kl else keep, grads)
            for words in _slices(len(head), block[1]):
                chunk.read(words)
            stats[0, rows], normalisers[0, rows] = policy.logps(), policy.normaliser()
            if ref is not None:
                stats[1, of_ref], normalisers[1, of_ref] = ref.logps(), ref.normaliser()
            if chunk.keep is not None:
                stats[2:, rows].index_copy_(1, chunk.keep, chunk.divergences().to(stats.dtype))
            if take_gradient:
                chunk.write_gradients(rows)
        if take_gradient:
            ctx.save_for_backward(*grads)
        elif ctx.recompute:
            ctx.save_for_backward(hidden, head, low, factor, *ref_inputs, targets, wanted, normalisers, stats[3])
        logps, ref_logps, forward, reverse = (row.clone() for row in stats)
        ctx.mark_non_differentiable(ref_logps)
        return logps, ref_logps, forward, reverse

    @staticmethod
    @once_differentiable
    def backward(ctx, *weights):  # one for each statistic, each [N]
        if ctx.recompute:
            with bfloat16_products(_rounds_on_cpu(ctx.saved_tensors[1])):
                return *_recomputed_gradients(ctx, weights), *[None] * 11
        hidden_grad = None
        for weight, grad in zip((weights[0], *weights[2:]), ctx.saved_tensors, strict=True):
            if grad is not None:
                part = weight.to(grad.dtype).unsqueeze(1) * grad
                hidden_grad = part if hidden_grad is None else hidden_grad + part
        return hidden_grad, *[None] * 14


class _Softmax:
    """The softmax of C rows of one network, block by block. Sums are of exp(logit - top), top the largest so far."""

    def __init__(self, network: _Network, targets: Tensor):
        self.network, self.targets = network, targets.unsqueeze(1)
        hidden = network.hidden
        self.picked = self.total = hidden.new_zeros(len(hidden), 1, dtype=_accumulation_dtype(hidden))
        self.top = torch.full_like(self.total, -torch.inf)

    def add(self, logits: Tensor, words: slice) -> tuple[Tensor, Tensor]:
        """(exp(logits - top) [C, W], overwriting ``logits``; the factor [C, 1] that rescales older sums)."""
        place = self.targets - words.start
        here = (place >= 0) & (place < logits.shape[1])
        self.picked = torch.where(here, logits.gather(1, place.clamp(0, logits.shape[1] - 1)), self.picked)
        top = torch.maximum(self.top, logits.amax(-1, keepdim=True))
        factor, self.top = (self.top - top).exp_(), top
        exps = logits.sub_(top).exp_()
        self.total = self.total * factor + exps.sum(-1, keepdim=True)
        return exps, factor

    def logps(self) -> Tensor:
        return (self.picked - self.top - self.total.log()).squeeze(1)

    def normaliser(self) -> Tensor:
        return (self.top + self.total.log()).squeeze(1)


class _Chunk:
    """Sums over the vocabulary for C rows: both divergences of the rows ``keep``, and gradients.

    ref_keep: these rows among those of ``ref``. grads: where the gradients of logps, kl_forward, kl_reverse go, None
    for those not wanted.
    """

    def __init__(
        self,
        policy: _Softmax,
        ref: _Softmax | None,
        keep: Tensor | None,
        ref_keep: Tensor | slice | None,
        grads: list[Tensor | None],
    ):
        self.policy, self.ref, self.keep, self.ref_keep, self.grads = policy, ref, keep, ref_keep, grads
        self.p_head = self.q_head = self.p_ratio_head = self.p_ratio = self.q_ratio = policy.total.new_zeros(())

    def read(self, words: slice) -> None:
        """Takes a block of words into the sums. Ratio is a - b, log p/q but for a constant of the row."""
        network = self.policy.network
        head, logits, ratio = network.head[words], network.logits(words), None
        if self.ref is not None:
            ref_logits = self.ref.network.logits(words)
            ratio = None if self.keep is None else logits[self.keep] - ref_logits[self.ref_keep]
            ref_exps, ref_factor = self.ref.add(ref_logits, words)
        exps, factor = self.policy.add(logits, words)
        if self.grads[0] is not None:
            self.p_head = _weigh(exps, head).add_(self.p_head * factor)
        if self.keep is None or ratio is None:
            return
        p_ratio, q, factor, ref_factor = (
            exps[self.keep] * ratio,
            ref_exps[self.ref_keep],
            factor[self.keep],
            ref_factor[self.ref_keep],
        )
        self.p_ratio = self.p_ratio * factor + p_ratio.sum(-1, keepdim=True)
        self.q_ratio = self.q_ratio * ref_factor + (q * ratio).sum(-1, keepdim=True)
        if self.grads[1] is not None:
            self.q_head = _weigh(q, head).add_(self.q_head * ref_factor)
        if self.grads[2] is not None:
            self.p_ratio_head = _weigh(p_ratio, head).add_(self.p_ratio_head * factor)

    def divergences(self) -> Tensor:
        """[2, K]: KL(ref || pi) and KL(pi || ref)."""
        policy, ref = self.policy, self.ref
        assert ref is not None  # there is no divergence without a reference
        top, total = ref.top[self.ref_keep], ref.total[self.ref_keep]
        shift = policy.top[self.keep] - top + (policy.total[self.keep] / total).log()  # of the normalisers
        shift = shift.squeeze(1)
        forward = shift - (self.q_ratio / total).squeeze(1)
        return torch.stack((forward, (self.p_ratio / policy.total[self.keep]).squeeze(1) - shift))

    def write_gradients(self, rows: slice) -> None:
        """The gradient of each statistic with respect to hidden, for weights of one, into ``rows`` of ``grads``."""
        mean = self.p_head / self.policy.total
        logps, forward, reverse = self.grads
        if logps is not None:
            logps[rows] = self.policy.network.head[self.policy.targets.squeeze(1)] - mean
        if self.keep is None or self.ref is None:
            return
        at, mean, total = self.keep + rows.start, mean[self.keep], self.policy.total[self.keep]
        if forward is not None:
            forward[at] = (mean - self.q_head / self.ref.total[self.ref_keep]).to(forward.dtype)
        if reverse is not None:
            reverse[at] = ((self.p_ratio_head - self.p_ratio * mean) / total).to(reverse.dtype)


def _recomputed_gradients(ctx, weights: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """With respect to hidden, head, low and B of the policy, from the normalisers that the forward pass found."""
    *networks, targets, wanted, normalisers, kl_reverse = ctx.saved_tensors
    like = networks[:4]
    grads = [
        torch.zeros_like(x, dtype=normalisers.dtype) if asked else None
        for x, asked in zip(like, ctx.needs_input_grad, strict=False)
    ]
    whole = _Network(*like).cast(ctx.operand)
    whole_ref = None if networks[4] is None else _Network(*networks[4:]).cast(ctx.operand)
    for rows in _slices(len(targets), ctx.block[0]):
        own, at = whole.rows(rows), targets[rows].unsqueeze(1)
        logps_weight, _, forward_weight, reverse_weight = (weight[rows].unsqueeze(1) for weight in weights)
        normaliser, ref_normaliser = normalisers[:, rows].unsqueeze(2)
        keep = _indices(wanted, rows, targets.device)
        ref_own = None if keep is None or whole_ref is None else whole_ref.rows(keep + rows.start)
        for words in _slices(len(whole.head), ctx.block[1]):
            log_p = own.logits(words).sub_(normaliser)
            p = log_p.exp()
            gradient = p * -logps_weight  # of the logits
            here = (at >= words.start) & (at < words.start + p.shape[1])
            gradient.scatter_add_(1, (at - words.start).clamp(0, p.shape[1] - 1), (logps_weight * here).to(p.dtype))
            if keep is not None and ref_own is not None:
                log_q = ref_own.logits(words).sub_(ref_normaliser[keep])
                p, ratio = p[keep], log_p[keep] - log_q
                if ctx.directions[0]:
                    gradient.index_add_(0, keep, (p - log_q.exp()) * forward_weight[keep])
                if ctx.directions[1]:
                    reverse = p * (ratio - kl_reverse[rows][keep].unsqueeze(1))
                    gradient.index_add_(0, keep, reverse * reverse_weight[keep])
            _add_gradients(grads, gradient, own, rows, words)
    return tuple(None if grad is None else grad.to(x.dtype) for grad, x in zip(grads, like, strict=True))


def _add_gradients(grads: list[Tensor | None], gradient: Tensor, own: _Network, rows: slice, words: slice) -> None:
    """Adds to the gradients of hidden, head, low and B the parts of a block, from that of its logits [C, W]."""
    for narrow, wide, x, weight in ((0, 1, own.hidden, own.head), (2, 3, own.low, own.factor)):
        of_x, of_weight = grads[narrow], grads[wide]
        if of_x is not None and weight is not None:
            of_x[rows] += _weigh(gradient, weight[words])
        if of_weight is not None and x is not None:
            of_weight[words] += _product(gradient.t().to(x.dtype), x.t())


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _indices(wanted: Tensor | None, rows: slice, device: torch.device) -> Tensor | None:
    """[K] on ``device``: which of ``rows`` are wanted; None for none."""
    keep = None if wanted is None else wanted[rows].nonzero().squeeze(1)
    return None if keep is None or not len(keep) else upload(keep, device)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _operand_dtype(head: Tensor) -> torch.dtype:
    """The dtype of factors: on CUDA, which sums in float32, that of head or autocast; elsewhere float32 or 64."""
    if not head.is_cuda:
        return _accumulation_dtype(head)
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else head.dtype


def _rounds_on_cpu(head: Tensor) -> bool:
    """Whether float32 products of the head are computed from factors rounded to bfloat16, which it is already."""
    return head.dtype == torch.bfloat16 and not head.is_cuda and has_bfloat16()


def _weigh(weights: Tensor, head: Tensor) -> Tensor:
    """[C, H]: rows of the head [W, H], summed under ``weights`` [C, W]."""
    return _product(weights.to(head.dtype), head.t())


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b^T with a float32 result (float64 for float64), also from bfloat16 operands."""
    if a.dtype in HALVES:
        return torch.mm(a, b.t(), out_dtype=torch.float32)
    return a @ b.t()
