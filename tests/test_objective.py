"""Model, batch and loss together: against TRL's numbers, and against running every sequence on its own."""

import dataclasses
import inspect
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import train
from mint.data.batch import EncodedPair, collate, make_batches, tokens_per_pair
from mint.losses import Loss, LossOutput, Needs, load_loss, nll
from mint.models import init_model
from mint.models.lora import add_lora, keep_as_reference, lora_layers, reference
from mint.models.recompute import SELECTIVE, set_recompute
from mint.objective import preference_loss
from mint.training.forward import Forward
from mint.training.monitor import evaluate
from tests.reference.weights import TINY_LLAMA, reference_adapter, reference_weights

REFERENCE = Path(__file__).parent / "reference"
TRL = json.loads((REFERENCE / "trl.json").read_text())
PAIRS = [EncodedPair(str(i), p["prompt"], p["chosen"], p["rejected"]) for i, p in enumerate(TRL["pairs"])]
# TRL's case -> our loss and its settings; "dpo_smoothed" is its "aot" a pair at a time (see make_trl.py).
OURS = {
    "orpo": ("orpo", {"beta": 0.1}),
    "orpo_beta_1": ("orpo", {"beta": 1.0}),
    "dpo": ("dpo", {"beta": 0.1}),
    "dpo_smoothed": ("dpo", {"beta": 0.1, "label_smoothing": 0.1}),
    "dpo_ipo": ("dpo", {"beta": 0.1, "kind": "ipo"}),
    "dpo_hinge": ("dpo", {"beta": 0.1, "kind": "hinge"}),
    "dpo_continued": ("dpo", {"beta": 0.1}),
    "cpo": ("cpo", {"beta": 0.1, "alpha": 1.0}),
    "simpo": ("simpo", {"beta": 2.0, "gamma": 0.5}),
}


ALL = Needs(corrupted_image=True, prompt=True)


def tiny_llama():
    model = init_model(TINY_LLAMA)
    model.load_state_dict(reference_weights(TINY_LLAMA, TRL["weights_seed"]))
    return model


def set_factors(model, seed):
    values = reference_adapter(TINY_LLAMA, seed, TRL["adapter"]["rank"])
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(values[name])


def adapted(case):
    model = add_lora(tiny_llama(), TRL["adapter"]["rank"], TRL["adapter"]["alpha"])
    if case == "dpo_continued":
        set_factors(model, TRL["adapter"]["start_seed"])
        keep_as_reference(model)
    set_factors(model, TRL["adapter"]["policy_seed"])
    return model


@pytest.mark.parametrize("row_length", [None, 64])
@pytest.mark.parametrize("case", OURS)
def test_loss_metrics_and_adapter_gradients_equal_trl(case, row_length):
    expected = TRL["cases"][case]
    gradients = load_file(REFERENCE / "trl.safetensors")
    model = adapted(case)
    batch = collate(PAIRS, row_length, prompt_targets=case.startswith("orpo"))
    output = preference_loss(model, batch, load_loss(*OURS[case]))
    output.loss.backward()

    assert output.loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    ours = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(ours) == 2 * 7 * TINY_LLAMA["num_hidden_layers"]
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[f"{case}/{name}"], rtol=1e-4, atol=1e-5)
    skipped = {"rewards/chosen", "rewards/rejected", "rewards/margins"} if case == "dpo_ipo" else set()
    for name, value in expected["metrics"].items():  # TRL's ipo logs summed rewards, its loss uses means
        if name in output.metrics and name not in skipped:
            assert float(output.metrics[name]) == pytest.approx(value, abs=2e-5), name


def random_pairs(count, seed=0, spans=False):
    g = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(3, 128, (n,), generator=g).tolist()  # noqa: E731
    pairs = []
    for i in range(count):
        prompt, chosen, rejected = draw(5 + 3 * i), draw(4 + i), draw(9 - i)
        marks = [[j % 2 == 0 for j in range(len(side))] if spans else None for side in (chosen, rejected)]
        pairs.append(EncodedPair(f"pair-{i}", prompt, chosen, rejected, *marks))
    return pairs


@torch.no_grad()
def plain_logps(model, prompt, answer):
    log_p = model(torch.tensor([prompt + answer]))[0].log_softmax(-1)
    return log_p[torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), torch.tensor(answer)]


def test_packed_log_probabilities_equal_those_of_each_sequence_alone():
    model, pairs = tiny_llama(), random_pairs(4)
    output = preference_loss(
        model, collate(pairs, row_length=48, rows=5), load_loss("simpo", {"beta": 1.0, "gamma": 0.0})
    )
    chosen = [plain_logps(model, p.prompt, p.chosen).mean() for p in pairs]
    rejected = [plain_logps(model, p.prompt, p.rejected).mean() for p in pairs]
    assert output.metrics["logps/chosen"].item() == pytest.approx(float(sum(chosen)) / 4, abs=1e-5)
    assert output.metrics["logps/rejected"].item() == pytest.approx(float(sum(rejected)) / 4, abs=1e-5)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("rank", [4, 64])
def test_first_dpo_loss_is_ln2_also_from_a_loaded_adapter(loaded, rank):
    model = add_lora(tiny_llama(), rank=rank, alpha=8)
    if loaded:
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B.weight, std=0.2)
        keep_as_reference(model)
    output = preference_loss(model.train(), collate(random_pairs(4)), load_loss("dpo"))
    assert output.loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_an_adapter_on_the_head_is_part_of_policy_and_reference():
    model, pairs = add_lora(tiny_llama(), rank=4, alpha=8, targets="q_proj,lm_head"), random_pairs(3)
    set_factors_constant(model)
    keep_as_reference(model)
    model.lm_head.lora_B.weight.data.mul_(1.5)
    output = preference_loss(model, collate(pairs), load_loss("dpo", {"beta": 0.5}))
    margins = []
    for pair in pairs:
        policy = [plain_logps(model, pair.prompt, answer).sum() for answer in (pair.chosen, pair.rejected)]
        with reference(model):
            start = [plain_logps(model, pair.prompt, answer).sum() for answer in (pair.chosen, pair.rejected)]
        margins.append(policy[0] - start[0] - policy[1] + start[1])
    expected = -torch.nn.functional.logsigmoid(0.5 * torch.stack(margins)).mean()
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
    assert abs(output.loss.item() - math.log(2)) > 1e-3


@pytest.mark.parametrize("name", ["rrpo", "fire"])
def test_span_losses_on_text(name):
    """KL terms and rewards are those of whole tables computed the plain way."""
    model = add_lora(tiny_llama(), rank=4, alpha=8)
    for i, layer in enumerate(lora_layers(model).values()):
        torch.nn.init.normal_(layer.lora_B.weight, std=0.3, generator=torch.Generator().manual_seed(i))
    base, pairs = tiny_llama(), random_pairs(3, spans=True)
    batch = collate(pairs)
    output = preference_loss(model, batch, load_loss(name, {"alpha": 0.5}))
    total = 0.0
    for pair in pairs:
        rewards = []
        for answer, marks in ((pair.chosen, pair.chosen_span), (pair.rejected, pair.rejected_span)):
            difference = plain_logps(model, pair.prompt, answer) - plain_logps(base, pair.prompt, answer)
            rewards.append(0.1 * difference[torch.tensor(marks)].sum())
        place = slice(len(pair.prompt) - 1, len(pair.prompt) + len(pair.chosen) - 1)
        tokens = torch.tensor([pair.prompt + pair.chosen])
        log_p, log_q = (m(tokens)[0, place].log_softmax(-1) for m in (model, base))
        forward = (log_q.exp() * (log_q - log_p)).sum(-1)
        reverse = (log_p.exp() * (log_p - log_q)).sum(-1)
        span = torch.tensor(pair.chosen_span)
        kl = forward.sum() if name == "rrpo" else (0.5 * forward + 0.5 * reverse)[span].sum()
        total += math.log1p(math.exp(float(rewards[1] - rewards[0]))) + 0.5 * float(kl)
    assert output.loss.item() == pytest.approx(total / 3, abs=1e-5)


def test_frozen_copy_as_reference_equals_the_adapter_switched_off():
    model, pairs = add_lora(tiny_llama(), rank=4, alpha=8), random_pairs(2)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=0.3)
    loss = load_loss("dpo")
    with_adapter = preference_loss(model, collate(pairs), loss)
    with_copy = preference_loss(model, collate(pairs), loss, frozen=tiny_llama())
    assert with_adapter.loss.item() == pytest.approx(with_copy.loss.item(), abs=1e-6)


CUSTOM = {  # a loss over each side, and what it should be: (sum over tokens, tokens) of each side -> number
    "chosen": (lambda chosen, rejected: nll(chosen), lambda s: s["chosen"][0] / s["chosen"][1]),
    "rejected": (lambda chosen, rejected: nll(rejected), lambda s: s["rejected"][0] / s["rejected"][1]),
    "both": (
        lambda chosen, rejected: nll(chosen, rejected),
        lambda s: (s["chosen"][0] + s["rejected"][0]) / (s["chosen"][1] + s["rejected"][1]),
    ),
    "chosen and a tenth of the prompt": (
        lambda chosen, rejected, prompt: nll(chosen) + 0.1 * nll(prompt),
        lambda s: s["chosen"][0] / s["chosen"][1] + 0.1 * s["prompt"][0] / s["prompt"][1],
    ),
    "the whole sequence": (
        lambda chosen, rejected, prompt: nll(chosen, prompt),
        lambda s: (s["chosen"][0] + s["prompt"][0]) / (s["chosen"][1] + s["prompt"][1]),
    ),
}


def custom(name):
    function = CUSTOM[name][0]
    wants = Needs(prompt="prompt" in inspect.signature(function).parameters)
    return Loss(name, lambda **sides: LossOutput(function(**sides)), wants, {})


def uneven_pairs():
    """Five pairs of random lengths; the prompt of the last has one token, so that none of it is predicted."""
    pairs = random_pairs(5)
    return [*pairs[:4], dataclasses.replace(pairs[4], prompt=pairs[4].prompt[:1])]


def by_hand(model, pairs):
    """{side: (sum of -log pi, number of tokens)}, one sequence at a time."""
    sums = {}
    for side in ("chosen", "rejected", "prompt"):
        runs = [((p.prompt[:1], p.prompt[1:]) if side == "prompt" else (p.prompt, getattr(p, side))) for p in pairs]
        logps = torch.cat([plain_logps(model, *run) for run in runs if run[1]])
        sums[side] = (-logps.sum().item(), len(logps))
    return sums


@pytest.mark.parametrize("name", CUSTOM)
def test_a_mean_over_tokens_of_any_side_is_that_of_the_whole_update(name):
    model, pairs, loss = tiny_llama().double(), uneven_pairs(), custom(name)
    expected = CUSTOM[name][1](by_hand(model, pairs))
    results = []
    for size in (5, 4, 3, 2, 1):  # the last micro-batch is mostly smaller
        losses, gradients = accumulate(model, pairs, size, loss, "prompt" in name or "whole" in name)
        assert losses == pytest.approx(expected, rel=1e-9)
        results.append(gradients)
    for gradients in results[1:]:
        for ours, whole in zip(gradients, results[0], strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-7, atol=1e-9)


ACCUMULATED = [("orpo", False), ("orpo", True), ("sft", True), ("dpo", False), ("cpo", False)]


@pytest.mark.parametrize("name, whole", ACCUMULATED)
def test_micro_batches_add_up_to_one_large_batch(name, whole):
    model = add_lora(tiny_llama().double(), 4, 8, targets="q_proj,down_proj")
    pairs, loss = uneven_pairs(), load_loss(name)
    set_factors_constant(model)
    at_once = preference_loss(model, collate(pairs, prompt_targets=whole), loss)
    gradients = torch.autograd.grad(at_once.loss, [p for p in model.parameters() if p.requires_grad])
    longest = max(map(len, pairs))
    for size, budget in ((5, 0), (2, 0), (1, 2 * longest), (1, longest)):
        total, ours = accumulate(model, pairs, size, loss, whole, {"rows": 1, "budget": budget} if budget else {})
        assert total == pytest.approx(at_once.loss.item(), rel=1e-9)
        for part, expected in zip(ours, gradients, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-7, atol=1e-9)


def forward_of(model, loss, prompt_targets, shape=None):
    return lambda size: Forward(model, loss, size, shape=shape or {}, prompt_targets=prompt_targets)


def accumulate(model, pairs, size, loss, prompt_targets, shape=None):
    """(loss, gradients) as the training loop accumulates them."""
    model.zero_grad()
    metrics, tokens = train.accumulate_gradients(forward_of(model, loss, prompt_targets, shape)(size), pairs)
    assert tokens == sum(map(len, pairs))
    return metrics["loss"], [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("name, whole", [("sft", False), ("orpo", True), ("dpo", False), ("rejected", False)])
def test_the_evaluation_loss_does_not_depend_on_the_batch_size(name, whole):
    model, loss = tiny_llama().double(), custom(name) if name in CUSTOM else load_loss(name)
    forward, pairs = forward_of(model, loss, whole), uneven_pairs()
    found = [evaluate(forward(size), pairs) for size in (5, 4, 2, 1)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-7)  # accuracies are in float32
    if name == "sft":
        total, tokens = by_hand(model, pairs)["chosen"]
        assert found[0]["eval/loss"] == pytest.approx(total / tokens, rel=1e-9)


def test_tokens_are_counted_as_they_are_predicted():
    """Also of corrupted twins, and without the prompt's image tokens."""
    pairs = [dataclasses.replace(pair, image_token=pair.prompt[2]) for pair in random_pairs(3)]
    pairs[1] = dataclasses.replace(pairs[1], twin=dataclasses.replace(pairs[1], rejected=[]))
    loss = Loss("any", lambda **sides: LossOutput(sum(side.logp_sum.sum() for side in sides.values()), sides), ALL, {})
    for prompt_targets in (False, True):
        counts = tokens_per_pair(pairs, prompt_targets)
        sides = preference_loss(tiny_llama(), collate(pairs, prompt_targets=prompt_targets), loss).metrics
        assert {n: int(side.mask.sum()) for n, side in sides.items()} == {n: round(3 * c) for n, c in counts.items()}
        batches = make_batches(pairs, 2)
        parts = [preference_loss(tiny_llama(), batch, loss, tokens_per_pair=counts).metrics for batch in batches]
        for name in set(counts) - {"prompt"}:
            assert sum(part[name].token_count for part in parts) == pytest.approx(3 * counts[name])


def set_factors_constant(model):
    for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))


@pytest.mark.parametrize("kind", ["folded", "separate", "dropout", "full"])
def test_gradient_checkpointing_changes_nothing(kind):
    """The adapter folded into the weight or apart from it, with dropout, and without an adapter."""
    pairs, gradients = random_pairs(2), []
    for recompute in (False, True, SELECTIVE):
        model = tiny_llama() if kind == "full" else add_lora(tiny_llama(), rank=4, dropout=0.2 * (kind == "dropout"))
        if kind == "separate":
            model.bfloat16()
        set_factors_constant(model)
        set_recompute(model, recompute)
        torch.manual_seed(0)
        preference_loss(model.train(), collate(pairs), load_loss("orpo")).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, *others in zip(*gradients, strict=True):
        assert plain.any() and all(torch.equal(plain, other) for other in others)


def test_selective_checkpointing_computes_no_product_of_a_weight_twice():
    """Products are kept, norms and SwiGLU are not."""
    counts = []
    for recompute in (False, SELECTIVE, True):
        model = add_lora(tiny_llama(), rank=4, dropout=0.1)  # no folding
        set_recompute(model, recompute)
        with _Counter() as counter:
            preference_loss(model.train(), collate(random_pairs(2)), load_loss("orpo")).loss.backward()
        counts.append(counter.calls)
    plain, selective, full = counts
    mm, silu = torch.ops.aten.mm.default, torch.ops.aten.silu.default
    assert plain[mm] == selective[mm] < full[mm] and plain[silu] < selective[silu] == full[silu]


class _Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))
