"""README.md and the other pages: links, pictures and line lengths; the README's examples, table of losses, citation."""

import inspect
import json
import re
from pathlib import Path

import pytest

import mint
from mint.demo import __main__ as demo
from mint.losses import load_loss, loss_names
from tests.test_docs import PAGES, ROOT

LARGEST_PICTURE = 150_000  # bytes


def name_of(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^]^]+\]: (\S+)$", text, re.MULTILINE)
    assert links
    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_labels_of_links_are_defined(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    used = set(re.findall(r"(?<![\]!\w])\[([^]]+)\](?![(:\[])", text))
    assert used <= set(re.findall(r"^\[([^]]+)\]: ", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_not_too_long(page):
    assert [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 120] == []


def test_pictures_are_small_and_shown():
    pictures = set((ROOT / "docs" / "images").iterdir())
    shown = {
        (p.parent / link).resolve() for p in PAGES for link in re.findall(r"!\[[^]]*\]\((.*?)\)", p.read_text("utf-8"))
    }
    assert pictures == shown and max(path.stat().st_size for path in pictures) < LARGEST_PICTURE


def test_the_examples_of_the_readme(tmp_path, monkeypatch, capsys):
    """Each Python block runs on a tiny model; the second one trains and saves an adapter."""
    monkeypatch.chdir(tmp_path)
    pairs = [
        {"prompt": "A name for a small jaw?", "chosen": "Micrognathia.", "rejected": "Macrognathia."},
        {"prompt": "A name for wide-set eyes?", "chosen": "Hypertelorism.", "rejected": "Hypotelorism."},
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert demo.main("base --pairs pairs.jsonl --shape demo --vocabulary 300 --out MODEL".split()) == 0
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len([line for line in first.splitlines() if line and not line.startswith("import")]) == 5
    capsys.readouterr()
    exec(first, {})
    loss, log_odds = map(float, capsys.readouterr().out.split())
    assert 3 < loss < 10 and -1 < log_odds < 1  # a random model of 300 tokens: about ln 300 = 5.7
    exec(second, {})
    assert Path("run/adapter/adapter_model.safetensors").is_file()


def test_the_table_of_losses_has_every_loss_with_its_defaults():
    text = (ROOT / "README.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w[\w-]*)` \|.*\|([^|]*)\|$", text, re.MULTILINE))
    rows["fire"] = re.search(r"^\* \*\*`fire`\*\*: (.*)\.$", text, re.MULTILINE)[1]
    assert set(rows) == set(loss_names())
    for name, settings in rows.items():
        stated = dict(setting.split()[:2] for setting in settings.split(", ") if setting.strip())
        loss = load_loss(name)
        defaults = {
            n: p.default for n, p in inspect.signature(loss.function).parameters.items() if n not in loss.options
        }
        known = {
            n: value for n, value in defaults.items() if value is not None and value is not inspect.Parameter.empty
        }
        if name == "mask-dpo":  # whose terms with these settings have weight 0
            known = {n: value for n, value in known.items() if n not in ("lam", "visual", "kl_over")}
        assert {n: float(v) if v[0].isdigit() else v for n, v in stated.items()} == known, name


def test_the_citation_names_version_licence_and_papers():
    text, project = ((ROOT / name).read_text("utf-8") for name in ("CITATION.cff", "pyproject.toml"))
    assert f"\nversion: {mint.__version__}\n" in text and "\nlicense: Apache-2.0\n" in text
    assert '\nlicense = "Apache-2.0"\n' in project and "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    assert re.findall(r'value: "arXiv:(.*)"', text) == ["2505.05736", "2606.12590"]
