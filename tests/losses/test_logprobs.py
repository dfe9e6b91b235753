"""The chunked numbers against the plain computation, values and gradients."""

import pytest
import torch

from mint.losses import logprobs
from mint.losses.logprobs import token_stats

N, H, V = 7, 5, 11


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    wanted = torch.tensor([True, False, True, True, False, False, True])
    return make(N, H), make(V, H), torch.randint(V, (N,), generator=g), make(N, H), make(V, H), wanted


def plain(hidden, head, targets, ref_hidden, ref_head):
    """The same numbers from whole [N, V] tables."""
    log_p, log_q = (hidden @ head.T).log_softmax(-1), (ref_hidden @ ref_head.T).log_softmax(-1)
    pick = targets.unsqueeze(1)
    return (
        log_p.gather(1, pick).squeeze(1),
        log_q.gather(1, pick).squeeze(1),
        (log_q.exp() * (log_q - log_p)).sum(-1),
        (log_p.exp() * (log_p - log_q)).sum(-1),
    )


@pytest.mark.parametrize("block", [(1, 1), (3, 4), (100, 100)])
def test_values_equal_the_plain_computation(case, block):
    hidden, head, targets, ref_hidden, ref_head, wanted = case
    stats = token_stats(hidden, head, targets, ref_hidden, ref_head, True, True, wanted, block)
    logps, ref_logps, forward, reverse = plain(hidden, head, targets, ref_hidden, ref_head)
    torch.testing.assert_close(stats.logps, logps)
    torch.testing.assert_close(stats.ref_logps, ref_logps)
    torch.testing.assert_close(stats.kl_forward, forward * wanted)
    torch.testing.assert_close(stats.kl_reverse, reverse * wanted)
    assert (stats.kl_forward[wanted] > 0).all()


@pytest.mark.parametrize("trainable_head", [False, True])
@pytest.mark.parametrize("directions", [(True, True), (False, False)])
def test_a_known_reference_is_read_where_a_kl_is_wanted_alone(case, directions, trainable_head):
    hidden, head, targets, ref_hidden, ref_head, wanted = case
    _, known, *kls = plain(hidden, head, targets, ref_hidden, ref_head)
    ref = (ref_hidden.masked_fill(~wanted[:, None], torch.nan), ref_head) if any(directions) else (None, None)
    leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_(trainable_head)]
    stats = token_stats(*leaves, targets, *ref, *directions, wanted, (2, 3), ref_logps=known)
    assert stats.ref_logps is known
    other = token_stats(*leaves, targets, ref_hidden, ref_head, *directions, wanted, (2, 3))
    for ours, theirs, expected in zip(stats[2:], other[2:], kls, strict=True):
        assert (ours is None) == (not any(directions))
        if ours is not None:
            torch.testing.assert_close(ours, expected * wanted)
            gradients = (
                torch.autograd.grad(x.sum(), leaves[: 1 + trainable_head], retain_graph=True) for x in (ours, theirs)
            )
            torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("trainable_head", [False, True])
def test_gradcheck(case, trainable_head):
    hidden, head, targets, ref_hidden, ref_head, wanted = case
    inputs = (hidden.requires_grad_(), head.requires_grad_(trainable_head))

    def numbers(hidden, head):
        stats = token_stats(hidden, head, targets, ref_hidden, ref_head, True, True, wanted, (3, 4))
        return stats.logps, stats.kl_forward, stats.kl_reverse

    assert torch.autograd.gradcheck(numbers, inputs)


@pytest.mark.parametrize("directions", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("trainable_head", [False, True])
def test_gradients_equal_the_plain_ones_for_what_is_asked(case, trainable_head, directions):
    hidden, head, targets, ref_hidden, ref_head, wanted = case
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    results = []
    for ours in (True, False):
        leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_(trainable_head)]
        if ours:
            stats = token_stats(*leaves, targets, ref_hidden, ref_head, *directions, wanted, (2, 3))
            assert (stats.kl_forward is None, stats.kl_reverse is None) == tuple(not d for d in directions)
            kls = [stats.kl_forward, stats.kl_reverse]
            logps = stats.logps
        else:
            logps, _, *kls = plain(*leaves, targets, ref_hidden, ref_head)
            kls = [kl * wanted for kl in kls]
        total = (weights * logps).sum()
        for asked, kl in zip(directions, kls, strict=True):
            total = total + (weights.flip(0) * kl).sum() if asked else total
        results.append(torch.autograd.grad(total, leaves[: 1 + trainable_head]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_reference_defaults_to_the_same_head_and_takes_no_gradient(case):
    hidden, head, targets, ref_hidden, _, _ = case
    ref_hidden.requires_grad_()
    stats = token_stats(hidden.requires_grad_(), head, targets, ref_hidden)
    torch.testing.assert_close(stats.ref_logps, plain(hidden, head, targets, ref_hidden, head)[1])
    assert stats.logps.requires_grad and not stats.ref_logps.requires_grad
    assert stats.kl_forward is None and stats.kl_reverse is None


def test_same_hidden_states_have_no_divergence(case):
    hidden, head, targets, *_ = case
    stats = token_stats(hidden, head, targets, hidden, kl_forward=True, kl_reverse=True)
    assert torch.equal(stats.logps, stats.ref_logps)
    assert torch.equal(stats.kl_forward, torch.zeros(N, dtype=torch.float64))
    assert torch.equal(stats.kl_reverse, torch.zeros(N, dtype=torch.float64))


def test_kl_without_a_reference_is_refused(case):
    hidden, head, targets, *_ = case
    with pytest.raises(ValueError, match="ref_hidden"):
        token_stats(hidden, head, targets, kl_forward=True)


def test_targets_outside_the_vocabulary_are_refused(case):
    hidden, head, targets, *_ = case
    for wrong in (-100, V):
        with pytest.raises(ValueError, match="targets must lie in"):
            token_stats(hidden, head, torch.where(targets == targets[0], wrong, targets))


@pytest.fixture
def adapted(case):
    """An adapter (A, B, s) on the head of ``case``, and another on the reference's."""
    g = torch.Generator().manual_seed(2)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return (make(2, H), make(V, 2), 0.5), (make(3, H), make(V, 3), 0.7)


def update_of(hidden, factors):
    a, b, scaling = factors
    return scaling * hidden @ a.T, b


def whole_head(head, factors):
    return head + factors[2] * factors[1] @ factors[0]


@pytest.mark.parametrize("block", [(1, 1), (3, 4), (100, 100)])
def test_an_adapter_on_either_head_equals_its_update_added_to_the_weight(case, adapted, block):
    hidden, head, targets, ref_hidden, ref_head, wanted = case
    updates = {"update": update_of(hidden, adapted[0]), "ref_update": update_of(ref_hidden, adapted[1])}
    stats = token_stats(hidden, head, targets, ref_hidden, ref_head, True, True, wanted, block, **updates)
    expected = plain(hidden, whole_head(head, adapted[0]), targets, ref_hidden, whole_head(ref_head, adapted[1]))
    for found, true, where in zip(stats, expected, (1, 1, wanted, wanted), strict=True):
        torch.testing.assert_close(found, true * where)


@pytest.mark.parametrize("directions", [(True, True), (True, False), (False, False)])
def test_gradients_of_an_adapter_on_the_head(case, adapted, directions):
    hidden, head, targets, ref_hidden, ref_head, wanted = case
    ref_update, scaling = update_of(ref_hidden, adapted[1]), adapted[0][2]
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    results = []
    for ours in (True, False):
        leaves = [x.clone().requires_grad_() for x in (hidden, *adapted[0][:2])]
        factors = (*leaves[1:], scaling)
        if ours:
            more = {"update": update_of(leaves[0], factors), "ref_update": ref_update}
            stats = token_stats(leaves[0], head, targets, ref_hidden, ref_head, *directions, wanted, (2, 3), **more)
            numbers = [stats.logps, stats.kl_forward, stats.kl_reverse]
        else:
            plainly = plain(leaves[0], whole_head(head, factors), targets, ref_hidden, whole_head(ref_head, adapted[1]))
            numbers = [plainly[0], *(kl * wanted for kl in plainly[2:])]
        asked = [x for x, want in zip(numbers, (True, *directions), strict=True) if want]
        results.append(torch.autograd.grad(sum((weights * x).sum() for x in asked), leaves))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_small_update_survives_under_a_head_of_half_precision(monkeypatch):
    """As on CUDA: values and gradients of A and B against float64, where the sum in bfloat16 would lose the update."""
    monkeypatch.setattr(logprobs, "_operand_dtype", lambda head: head.dtype)
    monkeypatch.setattr(logprobs, "_product", lambda a, b: a.float() @ b.float().t())
    hidden, head, targets, _ = (x.bfloat16() if x.is_floating_point() else x for x in near_reference(0.0))
    g = torch.Generator().manual_seed(3)
    a, b = torch.randn(4, 16, generator=g), 2e-4 * torch.randn(3000, 4, generator=g)
    results = []
    for ours in (True, False):
        leaves = [x.clone() if ours else x.double() for x in (a, b)]
        x, y = (leaf.requires_grad_() for leaf in leaves)
        if ours:
            stats = token_stats(hidden, head, targets, hidden, update=(hidden.float() @ x.T, y))
            change = (stats.logps - stats.ref_logps).double()
        else:
            states, weight = hidden.double(), head.double()
            change = plain(states, weight + y @ x, targets, states, weight)
            change = change[0] - change[1]
        results.append([change, *torch.autograd.grad(change.sum(), leaves)])
    for found, true in zip(*results, strict=True):
        assert (found.double() - true).norm() < 0.01 * true.norm()
    rounded = plain(hidden.double(), (head + b @ a).bfloat16().double(), targets, hidden.double(), head.double())
    assert (rounded[0] - rounded[1] - results[1][0]).norm() > 0.2 * results[1][0].norm()


def test_no_position_at_all(case):
    hidden, head, targets, ref_hidden, ref_head, wanted = case
    hidden = hidden[:0].requires_grad_()
    stats = token_stats(hidden, head, targets[:0], ref_hidden[:0], ref_head, True, True, wanted[:0])
    (grad,) = torch.autograd.grad(sum(some.sum() for some in stats), hidden)
    assert grad.shape == (0, H) and all(some.shape == (0,) for some in stats)


def near_reference(apart):
    """float64 states, head of 3,000 words, targets, and a reference whose KL is about ``apart`` squared."""
    g = torch.Generator().manual_seed(1)
    hidden, head = torch.randn(40, 16, generator=g, dtype=torch.float64), torch.randn(3000, 16, generator=g).double()
    return hidden, head, torch.randint(3000, (40,), generator=g), hidden + apart * torch.randn(40, 16, generator=g)


def test_small_divergences_keep_their_digits_in_float32():
    hidden, head, targets, ref_hidden = near_reference(3e-4)
    stats = token_stats(hidden.float(), head.float(), targets, ref_hidden.float(), kl_forward=True, kl_reverse=True)
    exact = plain(hidden.float().double(), head, targets, ref_hidden.float().double(), head)
    assert 1e-7 < exact[2].min() < exact[2].max() < 1e-5
    for found, true in zip(stats[2:], exact[2:], strict=True):
        assert (found - true).abs().max() < 5e-7


@pytest.mark.parametrize("device", ["cuda", "cpu with bfloat16 instructions"])
def test_divergences_under_a_head_of_half_precision(device, monkeypatch):
    """Products of bfloat16 summed in float32: the gradient keeps two digits although p and q are close."""
    if device == "cuda":
        monkeypatch.setattr(logprobs, "_operand_dtype", lambda head: head.dtype)
    monkeypatch.setattr(logprobs, "has_bfloat16", lambda: device != "cuda")
    monkeypatch.setattr(logprobs, "_product", lambda a, b: a.bfloat16().float() @ b.bfloat16().float().t())
    hidden, head, targets, ref_hidden = (x.bfloat16() if x.is_floating_point() else x for x in near_reference(0.02))
    results = []
    for numbers in (lambda x: token_stats(x, head, targets, ref_hidden, kl_forward=True, kl_reverse=True)[2:], None):
        states = (hidden if numbers else hidden.double()).clone().requires_grad_()
        kls = (
            numbers(states)
            if numbers
            else plain(states, head.double(), targets, ref_hidden.double(), head.double())[2:]
        )
        results.append([torch.autograd.grad(kl.sum(), states, retain_graph=True)[0].double() for kl in kls])
    for found, true in zip(*results, strict=True):
        assert (found - true).norm() < 0.01 * true.norm()


def test_low_precision_states_are_summed_in_float32(case):
    hidden, head, targets, *_ = case
    low = hidden.bfloat16(), head.bfloat16()
    stats = token_stats(*low, targets)
    assert stats.logps.dtype == torch.float32
    expected = (low[0].double() @ low[1].double().T).log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(stats.logps.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trainable_head", [False, True])
def test_autocast_rounds_nothing_on_the_cpu(trainable_head):
    hidden, head, targets, ref_hidden = (x.float() if x.is_floating_point() else x for x in near_reference(0.1))
    inputs = [hidden.requires_grad_(), *[head.requires_grad_()] * trainable_head]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            stats = token_stats(hidden, head, targets, ref_hidden, kl_forward=True, kl_reverse=True)
        results.append([*stats, *torch.autograd.grad(sum(x.sum() for x in (stats[0], *stats[2:])), inputs)])
    for plainly, cast in zip(*results, strict=True):
        assert torch.equal(plainly, cast)


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Watches every tensor made, and keeps the largest number of elements."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("trainable_head, adapted_head", [(False, False), (True, False), (False, True)])
def test_nothing_of_positions_times_vocabulary_is_made(trainable_head, adapted_head):
    n, h, v, block = 64, 4, 50, (20, 15)
    hidden, head = torch.randn(n, h, requires_grad=True), torch.randn(v, h, requires_grad=trainable_head)
    update = (torch.randn(n, 3, requires_grad=True), torch.randn(v, 3, requires_grad=True)) if adapted_head else None
    with _Largest() as watch:
        targets = torch.zeros(n, dtype=torch.int64)
        stats = token_stats(hidden, head, targets, hidden, kl_forward=True, block=block, update=update)
        (stats.logps.sum() + stats.kl_forward.sum()).backward()
    assert watch.elements == block[0] * block[1]  # more than hidden and head have
