"""Linear probes of an image tower: what a linear classifier of its features can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.fire.tower import FACTS, UNKNOWN, facts
from mint.data.image_features import ImageReader
from mint.files import write_aside
from mint.models.llama import CausalLM
from mint.synthetic.populations import BALANCED
from mint.synthetic.radiographs import KINDS, draw_radiograph

PENALTY = 1e-3  # of the squared weights, per standardised feature
BATCH = 64
PROBED = (2400, 600)  # radiographs to fit the probes to, and to test them on


@torch.no_grad()
def tower_features(model: CausalLM, reader: ImageReader, files: Sequence[str]) -> Tensor:
    """[N, patches * width], on the CPU: the tower's features of images, as the projector receives them."""
    parts, device = [], model.head_weight.device
    for start in range(0, len(files), BATCH):
        images = model.encode_images({name: x.to(device) for name, x in reader(files[start : start + BATCH]).items()})
        assert images is not None
        found = images["features"]
        parts.append((found[images["order"]] if "order" in images else found).flatten(1).float().cpu())
    return torch.cat(parts)


def probe(features: Tensor, labels: Tensor, unseen: Tensor, truth: Tensor) -> Tensor:
    """[N] bool: whether a softmax regression fitted to ``features`` [M, D] tells the classes of ``unseen`` [N, D].

    labels [M], truth [N]: classes from 0. Features are standardised; the weights have an L2 penalty.
    """
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    x, z = (features - mean) / scale, (unseen - mean) / scale
    weight = nn.Parameter(torch.zeros(int(labels.max()) + 1, x.shape[1]))
    bias = nn.Parameter(torch.zeros(len(weight)))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(x @ weight.T + bias, labels) + PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return (z @ weight.T + bias).argmax(1) == truth


def probe_radiographs(model: CausalLM, reader: ImageReader, folder: Path) -> dict[str, dict[str, float]]:
    """``probe_facts`` of drawn radiographs, which are written to ``folder``."""
    fitted, tested = PROBED
    drawn = [draw_radiograph(f"probe/{i}", BALANCED) for i in range(fitted + tested)]
    folder.mkdir(parents=True, exist_ok=True)
    files = [str(folder / f"{i}.png") for i in range(len(drawn))]
    for one, file in zip(drawn, files, strict=True):
        one.image.save(file)
    features, labels = tower_features(model, reader, files), torch.tensor([facts(one) for one in drawn])
    return probe_facts((features[:fitted], labels[:fitted]), (features[fitted:], labels[fitted:]), KINDS, FACTS)


def probe_facts(
    fitted: tuple[Tensor, Tensor], tested: tuple[Tensor, Tensor], kinds: Sequence[str], facts: Sequence[str]
) -> dict[str, dict[str, float]]:
    """kind -> fact -> accuracy, in 0 to 1, of a linear probe on the images of ``tested``.

    Either is (features [N, D], labels [N, kinds, facts]). A fact that no image of ``tested`` has is left out.
    """
    (features, labels), (unseen, truth) = fitted, tested
    found: dict[str, dict[str, float]] = {}
    for k, kind in enumerate(kinds):
        for f, name in enumerate(facts):
            fit, test = (classes[:, k, f] != UNKNOWN for classes in (labels, truth))
            if test.any():
                right = probe(features[fit], labels[fit, k, f], unseen[test], truth[test, k, f])
                found.setdefault(kind, {})[name] = right.float().mean().item()
    return found


def commonest(labels: Tensor, facts: Sequence[str]) -> dict[str, float]:
    """How often the commonest class of each fact is true, in 0 to 1; of those that are known. labels: [N, 1, facts]."""
    known = {name: labels[:, 0, i][labels[:, 0, i] != UNKNOWN] for i, name in enumerate(facts)}
    return {name: some.bincount().max().item() / len(some) for name, some in known.items() if len(some)}


def write_probes(
    fitted: tuple[Tensor, Tensor], tested: tuple[Tensor, Tensor], kind: str, facts: Sequence[str], file: Path
) -> None:
    """Prints and writes the table of ``probe_facts`` for one kind, beside the commonest classes of ``tested``."""
    found = {**probe_facts(fitted, tested, [kind], facts), "commonest": commonest(tested[1], facts)}
    table = probes_table(found, facts)
    print(table, flush=True)
    write_aside(file, table + "\n")


def probes_table(found: Mapping[str, Mapping[str, float]], facts: Sequence[str]) -> str:
    """A Markdown table, in per cent."""
    lines = [f"| probe (%) | {' | '.join(facts)} |", "|---" * (len(facts) + 1) + "|"]
    for kind, some in found.items():
        cells = [f"{100 * some[name]:.1f}" if name in some else "" for name in facts]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)
