"""The comparison on the drawn ward: end to end at the smallest size, and what its rows are trained with."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from benchmarks.fire import corruption, divergence, grounding, policy, probe, stability, style, tower, ward
from benchmarks.fire.__main__ import FINDINGS, run_findings
from benchmarks.fire.checkpoints import answers_file, repetition, saving, steps_of
from benchmarks.fire.corruption import WITHOUT
from benchmarks.fire.divergence import divergences
from benchmarks.fire.grounding import EVERY, ROWS, VIEWS, arm_of, choose_rates
from benchmarks.fire.methods import WIDER
from benchmarks.fire.policy import join
from benchmarks.fire.style import as_scored, terse
from benchmarks.fire.ward import BASE, RECIPE, Ward, slug
from mint import processes
from mint.data.chat import load_tokenizer
from mint.data.preferences import read_preferences, write_jsonl
from mint.data.questions import read_questions
from mint.demo import arms, radiograph_demo
from mint.demo.tiny_model import write_base
from mint.errors import InputError
from mint.evaluation import statistics
from mint.models import load_language_model
from mint.models.lora import load_adapter, lora_layers, merge_lora
from mint.prefs.claims import Truth
from mint.prefs.question_files import read_asked
from mint.prefs.rules_editor import edit_answer, says_truth, true_without_lesion
from mint.synthetic.populations import POPULATIONS
from mint.synthetic.radiograph_set import LONG, ask
from mint.synthetic.radiographs import draw_radiograph
from mint.tasks.vqa import words
from mint.training import curves
from tests.demo.test_arms import InThisProcess

SOME = ["DPO", WITHOUT, "FiRe", WIDER]


def arguments(out, **changed):
    return argparse.Namespace(
        **{
            "out": str(out),
            "model": None,
            "rows": SOME,
            "seeds": 1,
            "steps": 2,
            "patients": 2,
            "decoder": None,
            "rates": [1e-3],
            "findings": FINDINGS,
            "device": "auto",
            "dtype": "auto",
        }
        | changed
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, tables) of a study with a few images and steps; true answers stand for those of the untaught policy."""
    with pytest.MonkeyPatch.context() as patch:
        for name, drawn in (("SHOWN", (3, 1)), ("TAUGHT", (3, 1)), ("ASKED", 3), ("REPORTED", 1)):
            patch.setattr(radiograph_demo, name, drawn)
        patch.setattr(policy, "STEPS", (1, 1))
        true = lambda task, loaded, questions, **_: [question.answer for question in questions]  # noqa: E731
        patch.setattr(radiograph_demo.Vqa, "ask", true)
        patch.setattr(ward, "TUNED", (1, 500))
        patch.setattr(policy, "SIGHT", (4, 2))
        patch.setattr(probe, "PROBED", (40, 10))
        patch.setattr(grounding, "LOOKED", 3)
        patch.setattr(style, "ROWS", dict(list(style.ROWS.items())[::3]))
        patch.setattr(stability, "ROWS", dict(list(stability.ROWS.items())[::3]))
        patch.setattr(stability, "LONGER", 1)
        patch.setattr(curves, "plot_curves", lambda *_: None)
        patch.setattr(processes, "ProcessPoolExecutor", InThisProcess)
        patch.setattr(statistics, "RESAMPLES", 20)
        patch.setattr(statistics, "FLIPS", 20)
        out = tmp_path_factory.mktemp("ward")
        tables = run_findings(arguments(out))
        patch.setattr(arms, "_run", lambda *_: pytest.fail("ran again"))
        assert run_findings(arguments(out)) == tables
        with pytest.raises(InputError, match="was trained with other settings"):
            run_findings(arguments(out, steps=3))
        other = write_base(tmp_path_factory.mktemp("other"), ["a b c"] * 50, "shallow", 60)
        for changed, message in (
            ({"patients": 3}, "give another --out"),
            ({"decoder": str(other)}, "give another --out"),
            ({"decoder": "elsewhere"}, "is not a model directory"),
        ):
            with pytest.raises(InputError, match=message):
                run_findings(arguments(out, **changed))
        yield out, tables


def test_every_population_has_a_table_with_the_divergence_and_the_control_region(finished):
    out, tables = finished
    assert [line for line in tables.splitlines() if line in POPULATIONS] == list(POPULATIONS)
    for name in POPULATIONS:
        rows = json.loads((out / name / "table.json").read_text())["rows"]
        assert list(rows) == [BASE, *SOME]
        assert all(
            {"clinical", "drop_lesion", "drop_elsewhere", "difference", "kl"} <= set(row) for row in rows.values()
        )
        assert rows[BASE]["kl"]["value"] == 0 < rows["FiRe"]["kl"]["value"]
        assert f"{rows['FiRe']['kl']['value']:.2f}" in (out / name / "table.md").read_text()
    assert (out / "rows.png").is_file() and json.loads((out / "rates.json").read_text())["FiRe"].keys() == {"0.001"}


def test_patients_that_choose_the_rate_are_in_no_table(finished):
    out, _ = finished
    images = {
        name: [p.read_bytes() for p in out.glob(f"{name}/**/images/*.png")] for name in ("tuning", "unseen", "seed-0")
    }
    assert all(images.values()) and len({image for some in images.values() for image in some}) == sum(
        map(len, images.values())
    )


def test_the_adapter_is_in_the_language_model_alone(finished):
    out, _ = finished
    (adapter,) = out.glob("seed-0/fire/0.001/run/adapter")
    layers = lora_layers(load_adapter(load_language_model(str(out / "policy" / "model")), adapter))
    assert layers and not [name for name in layers if "vision" in name or "projector" in name]


def test_a_corrupted_image_only_where_the_flipped_answer_is_true_of_it(finished):
    """Of true answers: those that affirm a finding in reply to a question about its presence."""
    out, _ = finished
    folder = out / "seed-0"
    truths = {asked.id: asked for asked in read_asked(folder / "questions.jsonl")}
    presence, every = (read_preferences(folder / f"{name}.jsonl") for name in ("presence", "every"))
    assert all(len(pair.corrupted_images) == 1 for pair in every)
    shown = [pair for pair in presence if pair.corrupted_images]
    assert 0 < len(shown) < len(presence)
    for pair in presence:
        asked = truths[pair.id]
        present = [
            f
            for f in asked.truth.findings
            if f.present and (not asked.truth.about or set(f.names) & set(asked.truth.about))
        ]
        affirmed = asked.question.startswith("Is there") and bool(present)
        if asked.question != radiograph_demo.DESCRIBE:
            assert bool(pair.corrupted_images) == affirmed, (pair.id, pair.rejected.text)
        if pair.corrupted_images:
            same = next(other for other in every if other.id == pair.id)
            assert (folder / pair.corrupted_images[0]).read_bytes() == (folder / same.corrupted_images[0]).read_bytes()


@pytest.mark.parametrize(
    ("answer", "present", "about", "expected"),
    [
        ("There is no nodule.", True, ["nodule"], True),
        ("There is no nodule.", False, ["nodule"], False),  # it was true already
        ("The nodule is on the right.", True, ["nodule"], False),
        ("There is no nodule and no effusion.", True, [], True),
        ("There is no nodule, but an effusion.", True, [], False),
        ("There is no effusion.", True, ["effusion"], False),
    ],
)
def test_what_becomes_true_once_the_lesion_is_hidden(answer, present, about, expected):
    findings = [{"names": ["nodule"], "present": present, "side": "left"}, {"names": ["effusion"], "present": False}]
    assert true_without_lesion(answer, Truth.from_dict({"findings": findings, "about": about})) == expected


def test_the_same_rows_on_pairs_of_balanced_patients(finished):
    """As many patients, but others, at the rates that were chosen; a table for each population."""
    out, tables = finished
    folders = out / "seed-0", out / "seed-0" / "balanced"
    asked = [{image for one in read_asked(folder / "questions.jsonl") for image in one.images} for folder in folders]
    shown = [{(folder / image).read_bytes() for image in some} for folder, some in zip(folders, asked, strict=True)]
    assert len(shown[0]) == len(shown[1]) > 0 and not shown[0] & shown[1]
    for name in POPULATIONS:
        assert f"{name}, with pairs of balanced patients" in tables
        assert list(json.loads((out / "balanced" / name / "table.json").read_text())["rows"]) == [BASE, *SOME]
    for row in SOME:
        trained = [
            json.loads((out / "seed-0" / slug(row) / run / "trained.json").read_text())
            for run in ("0.001", "balanced-0.001")
        ]
        assert trained[0].pop("data") != trained[1].pop("data") and trained[0] == trained[1]
    assert (out / "habits.png").is_file()


def test_the_divergence_is_that_of_two_networks(finished):
    """Against the difference of the log-softmax of the policy, its adapter merged, and of the base."""
    out, _ = finished
    model_dir, answers = str(out / "policy" / "model"), out / "unseen" / "ward" / "answers.jsonl"
    adapter = out / "seed-0" / "fire" / "0.001" / "run" / "adapter"
    found = {row["id"]: row["kl"] for row in divergences(model_dir, adapter, answers)}
    records = read_preferences(answers, require_rejected=False)
    assert list(found) and set(found) == {record.id for record in records}
    base = load_language_model(model_dir).eval()
    policy = merge_lora(load_adapter(load_language_model(model_dir), adapter), drop=True).eval()
    tokenizer, reader = load_tokenizer(model_dir), divergence.ImageReader(divergence.load_processor(model_dir))
    for record in divergence.find_images(records[:3], answers):
        slots = divergence.ImageSlots(*base.image_slots, reader.processor)
        (pair,) = divergence.encode_pairs([record], tokenizer, 1024, slots=slots)[0]
        (batch,) = divergence.make_batches([pair], 1)
        batch = divergence.replace(batch, images=reader(batch.image_files))
        with torch.no_grad():
            logs = [
                (
                    model.hidden_states(batch).flatten(0, 1)[batch.predict].double() @ model.head_weight.double().T
                ).log_softmax(-1)
                for model in (base, policy)
            ]
        expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean().item()
        assert found[record.id] == pytest.approx(expected, rel=1e-3, abs=1e-7)


def study(root, **changed):
    return Ward(**{"root": root, "policy": Path("model"), "seeds": 3, "steps": 5} | changed)


def test_the_rows_differ_in_loss_rate_and_corrupted_images_alone(tmp_path):
    found = study(tmp_path)
    settings = {row: dict(arm_of(found, row, "seed-1", 1e-4).settings) for row in ROWS}
    files = {row: Path(one.pop("data")).name for row, one in settings.items()}
    assert files == {row: f"{VIEWS.get(row, 'presence')}.jsonl" for row in ROWS} and files[EVERY] == "every.jsonl"
    common = {**RECIPE, "steps": 5, "lr": 1e-4, "seed": 1}
    assert all(
        {k: one[k] for k in common} == common and one.keys() - common <= {"loss", "gamma", "lam", "visual", "loss_args"}
        for one in settings.values()
    )
    assert settings[EVERY] == settings["FiRe"]
    assert settings["mDPO"] == settings["mDPO, lesion hidden"]
    more = study(tmp_path, seeds=5)
    assert arm_of(found, "FiRe", "tuning", 1e-4).settings == arm_of(more, "FiRe", "tuning", 1e-4).settings
    assert len({arm_of(found, row, "seed-1", rate).folder for row in ROWS for rate in (1e-5, 1e-4)}) == 2 * len(ROWS)


def test_kinds_of_corruption_differ_in_their_images_alone(tmp_path):
    """At FiRe's rate, whatever other rows have chosen; without the image term gamma is 0."""
    found = study(tmp_path)
    rates = {"FiRe": {"1e-05": 0.6, "0.0001": 0.5}, WITHOUT: {"1e-05": 0.5, "0.0001": 0.6}}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    kinds, without = corruption.arms_of(found)
    arms = [some[0] for some in (*kinds.values(), without)]
    settings = [dict(arm.settings) for arm in arms]
    assert {one["lr"] for one in settings} == {1e-5} and settings[-1].pop("gamma") == 0
    assert len({one.pop("data") for one in settings}) == len(corruption.KINDS) == len({a.folder for a in arms}) - 1
    assert all(one == settings[0] for one in settings)


def test_the_rate_with_the_best_mean_over_populations_is_chosen(tmp_path, monkeypatch):
    one = study(tmp_path)
    tests = [ward.TestSet(name, tmp_path, {}) for name in POPULATIONS]
    monkeypatch.setattr(Ward, "tuned", tests)
    tried = [arm_of(one, "FiRe", "tuning", rate) for rate in (1e-5, 1e-4)]
    for arm, scores in zip(tried, ((0.9, 0.5, 0.4), (0.7, 0.7, 0.7)), strict=True):
        for test, value in zip(tests, scores, strict=True):
            (arm.folder / test.name).mkdir(parents=True)
            (arm.folder / test.name / "metrics.json").write_text(json.dumps({"scores": {"clinical": {"value": value}}}))
    assert choose_rates(one, {"FiRe": tried}) == {"FiRe": 1e-4}
    assert json.loads((tmp_path / "rates.json").read_text())["FiRe"] == pytest.approx({"1e-05": 0.6, "0.0001": 0.7})


def test_the_figures_and_tables_of_all_findings(finished):
    out, tables = finished
    for name in ("rows", "layers", "corruption", "style", "stability"):
        assert (out / f"{name}.png").stat().st_size > 10_000
    for name in ("corruption", "style", "stability"):
        assert (out / f"{name}.md").read_text().strip() in tables
    records = [json.loads(line) for line in (out / "unseen" / BASE / "balanced" / "attention.jsonl").open()]
    assert records and all(len(record["layers"]["span"]["attention_ratio"]) == 3 for record in records)


def test_the_three_forms_of_a_pair(finished):
    """The same records; the terse truth, the changed words, the sentences."""
    out, _ = finished
    own, bare, short = (read_preferences(out / "seed-0" / f"style-{form}.jsonl") for form in ("own", "bare", "terse"))
    assert [pair.id for pair in own] == [pair.id for pair in bare] == [pair.id for pair in short]
    for one, changed, two in zip(own, bare, short, strict=True):
        (start, stop), *_ = one.chosen.spans
        assert changed.chosen.text.startswith(one.chosen.text[start:stop])
        assert two.rejected == one.rejected and len(two.chosen.text.split()) <= 3
        assert not changed.corrupted_images and not two.corrupted_images


def test_the_terse_truth_and_how_it_is_scored(finished):
    out, _ = finished
    questions = {one.id: one for one in read_questions(out / "unseen" / "ward" / "test.jsonl")[0]}
    for record in read_asked(out / "unseen" / "ward" / "test.jsonl"):
        if record.question != radiograph_demo.DESCRIBE:
            scored = as_scored(terse(record), questions[record.id])
            assert says_truth(scored, record.truth), scored
            assert as_scored(record.answer, questions[record.id]) == record.answer
            for nothing in ("", "\N{REPLACEMENT CHARACTER}" * 3, "vvvv", "This is left."):
                assert as_scored(nothing, questions[record.id]) == nothing


def test_a_sample_is_the_same_in_every_run_and_in_order():
    rows = list(range(100))
    found = ward.sample(rows, 30)
    assert len(found) == 30 == len(set(found)) and found == sorted(found) == ward.sample(rows, 30)
    assert ward.sample(rows, 200) == rows and max(found) > 80 > 20 > min(found)


def test_repetition_by_hand():
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5) and repetition("a b c") == 0.0


def test_a_probe_learns_what_is_linear_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(400, 5, generator=generator) for _ in range(2))
    linear, product = (lambda v: (v[:, 0] > 0).long()), (lambda v: (v[:, 0] * v[:, 1] > 0).long())
    assert probe.probe(x, linear(x), z, linear(z)).float().mean() > 0.95
    assert 0.4 < probe.probe(x, product(x), z, product(z)).float().mean() < 0.6


def test_the_lead_over_the_row_without_kl(tmp_path, monkeypatch):
    """By hand, from the last step's answers: facts 0.5 and 1.0 in the place of 0.5 and 0.5, KL 0.25 of 0.75."""
    monkeypatch.setattr(stability, "ROWS", {"no KL": {"alpha": 0.0}, "both directions": {}})
    some = study(tmp_path)
    for row, facts, kl in (("no KL", (0.5, 0.5), 0.75), ("both directions", (0.5, 1.0), 0.25)):
        for arm in stability.arms_of(some, row, 1e-3):
            rows = [{"id": str(i), "images": [f"{i}.png"], "facts": x, "kl": kl} for i, x in enumerate(facts)]
            file = answers_file(arm, steps_of(arm)[-1])
            file.parent.mkdir(parents=True)
            write_jsonl(file, rows)
    (line,) = stability.leads_table(some, [1e-3]).splitlines()[2:]
    assert line.startswith("| both directions, 0.001 | +25.0 (") and "| -0.50 (-0.50 to -0.50) |" in line


def test_the_steps_at_which_a_row_is_asked(tmp_path):
    settings = {"loss": "sft", **saving(100)}
    arm = study(tmp_path).arm("row", "seed-0", settings, "pairs")
    saved = {*range(settings["save_every"], 101, settings["save_every"]), 100}
    assert set(steps_of(arm)) <= saved and steps_of(arm) == [3, 6, 12, 24, 48, 96, 100]
    assert len(saved) <= settings["keep"] + 1


def test_numbers_out_of_range(tmp_path):
    for wrong in ({"seeds": 0}, {"steps": 0}, {"patients": 0}, {"rates": [0.0]}):
        with pytest.raises(InputError, match="must be at least 1, --rates greater than 0"):
            run_findings(arguments(tmp_path, **wrong))


def test_a_finding_without_its_rows(tmp_path):
    with pytest.raises(InputError, match="--findings stability needs the rows FiRe"):
        run_findings(arguments(tmp_path, rows=["DPO"], findings=["stability"]))


def test_the_policy_on_a_pretrained_decoder(finished, tmp_path):
    """The tower that sees, and the decoder's own logits for a text without images; a turn of ChatML with an image."""
    out, _ = finished
    sighted, decoder = out / "policy" / "sighted", write_base(tmp_path / "decoder", ["a b c"] * 50, "shallow", 60)
    joined = join(sighted, decoder, tmp_path / "joined")
    model, words, eyes = (load_language_model(folder) for folder in (joined, decoder, sighted))
    tokens = torch.tensor([[1, 5, 9, 3]])
    torch.testing.assert_close(model(tokens)[..., : words.config.vocab_size], words(tokens))
    pixels = {"pixel_values": torch.randn(1, 3, 64, 64)}
    torch.testing.assert_close(model.encode_images(pixels)["features"], eyes.encode_images(pixels)["features"])
    tokenizer = load_tokenizer(joined)
    ids = tokenizer.encode_chat([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a b"}]}])
    assert ids.count(model.image_slots[0]) == 1
    (decoder / "tokenizer.json").write_text(Tokenizer(WordLevel({"a": 0}, "a")).to_str())
    with pytest.raises(InputError, match="has none of the tokens"):
        join(sighted, decoder, tmp_path / "other")


def test_the_facts_that_the_tower_learns():
    """By hand: a loss of each fact over the findings that have it."""
    logits, labels = torch.zeros(1, 4 * 10), torch.full((1, 4, 4), tower.UNKNOWN)
    labels[0, :, 0] = 0
    labels[0, 1] = torch.tensor([1, 0, 2, 1])
    expected = sum(math.log(count) for count in (2, 2, 3, 3))
    assert tower.fact_loss(logits, labels, tower.FACTS).item() == pytest.approx(expected)
    labels[0, :, 3] = tower.UNKNOWN  # as in a batch in which no finding has a zone
    assert tower.fact_loss(logits, labels, tower.FACTS).item() == pytest.approx(expected - math.log(3))


def test_long_answers_are_read_and_edited_like_short_ones():
    found = [(drawn, f"long/{i}") for i in range(20) for drawn in [draw_radiograph(f"long/{i}", POPULATIONS["ward"])]]
    lengths = []
    for drawn, key in found:
        for short, long in zip(ask(drawn), ask(drawn, LONG, key), strict=True):
            assert long.truth == short.truth and says_truth(long.answer, Truth.from_dict(long.truth)), long.answer
            if short.text != radiograph_demo.DESCRIBE:
                edit = edit_answer(long.answer, Truth.from_dict(long.truth), key)
                assert edit.right and not says_truth(edit.edited, Truth.from_dict(long.truth)), edit
                assert edit_answer(edit.edited, Truth.from_dict(long.truth), key).edited == long.answer
                lengths.append(len(words(long.answer)))
    assert 12 < sum(lengths) / len(lengths) < 16
