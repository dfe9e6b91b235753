"""The notebook runs from top to bottom and shows what its text says; its stored outputs are complete and portable."""

import contextlib
import io
import json
import re
from pathlib import Path

import matplotlib
import pytest
import torch

NOTEBOOK = json.loads(Path(__file__).with_name("inspect_a_pair.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def run():
    """(names after the last cell, what each cell printed)."""
    matplotlib.use("Agg")
    names, printed = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.pyplot.show", lambda: None)
        for cell in CELLS:
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec("".join(cell["source"]), names)
            printed.append(output.getvalue())
    names["plt"].close("all")
    return names, printed


def test_the_tokens_are_those_stored(run):
    """Prompt, chosen and rejected answer; both answers start at the same position; the spans are the marked phrases."""
    [place] = [i for i, cell in enumerate(CELLS) if "position  segment" in "".join(cell["source"])]
    printed = run[1][place]
    assert printed == "".join(CELLS[place]["outputs"][0]["text"])
    rows = [line.split(maxsplit=2) for line in printed.splitlines()[1:]]
    starts = [next(int(position) for position, role, _ in rows if role == segment) for segment in "012"]
    assert starts[0] == 0 and starts[1] == starts[2] == sum(role == "0" for _, role, _ in rows)
    marked = [text.removeprefix("*").strip(" '") for _, _, text in rows if text.startswith("*")]
    assert marked == ["consolidation", "right", "upper", "pneumothorax", "right", "lower"]


def test_statistics_and_gradients(run):
    names = run[0]
    chosen, rejected = names["chosen"], names["rejected"]
    assert (chosen.logps <= 0).all() and (chosen.kl_forward >= -1e-6).all() and (chosen.kl_reverse >= -1e-6).all()
    assert chosen.kl_forward.max() > 0.01  # the policy has left the reference
    margin = (chosen.logps - chosen.ref_logps).sum() - (rejected.logps - rejected.ref_logps).sum()
    assert margin > 0  # and prefers the chosen answer
    torch.testing.assert_close(names["values"]["DPO"], torch.log1p(torch.exp(-0.1 * margin)))
    gradients = names["gradients"]
    slope = 0.1 * torch.sigmoid(-0.1 * margin)
    torch.testing.assert_close(gradients["DPO"]["chosen"], -slope.expand(chosen.logps.shape[1]))
    torch.testing.assert_close(gradients["DPO"]["rejected"], slope.expand(rejected.logps.shape[1]))
    assert (gradients["ORPO"]["chosen"] < 0).all() and (gradients["ORPO"]["rejected"] > 0).all()
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        assert side.span.sum() == 3 and torch.equal(gradients["FiRe"][name] != 0, side.span[0])


def test_stored_outputs():
    """Every cell was run in order; all figures are there; nothing names a folder of the machine, nothing went wrong."""
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert all(o["output_type"] != "error" and o.get("name") != "stderr" for o in outputs)
    images = [o["data"].pop("image/png") for o in outputs if "image/png" in o.get("data", {})]
    assert len(images) == 3 and sum(map(len, images)) < 300_000
    text = json.dumps(NOTEBOOK)
    assert not re.search(r"(?<![\w.*<])/(home|tmp|root|usr|work|Users|var|mnt)/|[A-Z]:\\\\", text)
