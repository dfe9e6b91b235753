"""On-policy pairs: records and verdicts by hand, answers kept between runs, instructed editors over a connection."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

import generate_prefs
import mint.prefs.edit_pairs as edit_pairs_module
from mint.data.preferences import read_preferences
from mint.errors import FileProblems, InputError
from mint.prefs.chat_endpoint import ChatEndpoint
from mint.prefs.claims import Truth
from mint.prefs.edit_pairs import EditReport, edit_pairs, read_asked, rules_editor, verify
from mint.prefs.instructed_editor import instructed_editor, parse_reply, request
from mint.prefs.rules_editor import Edit
from tests.test_train_images import setting  # noqa: F401

LEFT = {"findings": [{"names": ["effusion"], "present": True, "side": "left"}]}
NONE = {"findings": [{"names": ["effusion"], "present": False}], "answer": "no"}
ANSWERS = {
    "wrong": "There is an effusion on the right.",
    "right": "There is an effusion on the left.",
    "closed": "Yes",
    "other": "The heart is large.",
}


def rows():
    truths = {"wrong": LEFT, "right": LEFT, "closed": NONE, "other": LEFT}
    for name, truth in truths.items():
        yield {"id": name, "image": "tiles/red.png", "question": "Is there an effusion?", "truth": truth, "answer": "x"}


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({**row, "boxes": [[0, 0, 4, 4]]}) + "\n" for row in rows()))
    return read_asked(path)


def test_pairs_by_hand(asked):
    report, rejects = EditReport(), []
    pairs = list(edit_pairs(asked, [ANSWERS[one.id] for one in asked], rules_editor, "rules", report, rejects))
    first, second, third = pairs
    assert first["chosen"] == "There is an effusion on the <mask>left</mask>."
    assert first["rejected"] == "There is an effusion on the <mask>right</mask>." and first["boxes"] == [[0, 0, 4, 4]]
    assert first["edit"] == {
        "answer": ANSWERS["wrong"],
        "edited": "There is an effusion on the left.",
        "editor": "rules",
        "right": False,
        "kept": round(6 / 7, 4),
    }
    assert second["edit"]["right"] and second["chosen"].replace("<mask>", "").replace("</mask>", "") == ANSWERS["right"]
    assert (third["chosen"], third["rejected"]) == ("<mask>No</mask>", "<mask>Yes</mask>")
    assert rejects == [
        {"id": "other", "answer": ANSWERS["other"], "edited": None, "why": "are not judged by the editor"}
    ]
    assert str(report) == (
        "3 pairs (33.3 % right as they stood; 80.0 % of their words kept); 1 answers that are not judged by the editor"
    )  # of 7, 7 and 1 words all but one


@pytest.mark.parametrize(
    "answer, edited, right, problem",
    [
        ("An effusion on the left.", "An effusion on the right.", True, None),
        ("An effusion on the left.", "An  effusion on the left.", True, "change nothing"),
        ("An effusion on the left.", " ", True, "change nothing"),
        ("An effusion on the left.", "Nothing at all to see on the right, effusion.", True, "change too much"),
        ("An effusion on the right.", "An effusion on the right side.", False, "still contradict the truth"),
        ("An effusion on the left.", "One effusion on the left.", True, "agree with the truth on both sides"),
        ("Right effusion", "Left effusion", False, None),
    ],
)
def test_what_the_verifier_lets_through(answer, edited, right, problem):
    assert verify(Edit(answer, edited, right), Truth.from_dict(LEFT)) == problem


def test_without_a_truth_in_parts_the_size_of_the_edit_is_checked_alone():
    assert verify(Edit("one two three four", "one two three five", True), Truth()) is None


def test_every_bad_line_is_named(tmp_path):
    good = next(iter(rows()))
    bad = [
        "{",
        "[]",
        json.dumps({**good, "image": 3}),
        json.dumps({**good, "id": "b", "question": " "}),
        json.dumps({key: value for key, value in good.items() if key != "truth"}),
        json.dumps({**good, "id": "c", "truth": {"findings": [{}]}}),
        json.dumps(good),
    ]
    (tmp_path / "x.jsonl").write_text("\n".join([json.dumps(good), *bad]))
    with pytest.raises(FileProblems) as error:
        read_asked(tmp_path / "x.jsonl")
    wanted = [
        "invalid JSON",
        "an object",
        "a file name",
        "must be a text",
        "no truth",
        "wrong form",
        "also that of x.jsonl:1",
    ]
    assert all(part in problem for part, problem in zip(wanted, error.value.problems, strict=True))
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no records"):
        read_asked(tmp_path / "x.jsonl")


def test_lines_end_where_json_lines_do(asked, tmp_path):
    """A question and an answer may hold other line ends, which JSON writes as they are."""
    odd = "Is it\u2028large\x85?"
    row = {**asked[0].raw, "question": odd}
    (tmp_path / "odd.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (one,) = read_asked(tmp_path / "odd.jsonl")
    assert one.question == odd


def test_the_command(setting, monkeypatch, capsys):  # noqa: F811
    (setting / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows()))
    monkeypatch.setattr(
        edit_pairs_module, "answer_questions", lambda args, asked, *_, **state: [ANSWERS[one.id] for one in asked]
    )
    command = ["edit", "--questions", f"{setting}/questions.jsonl", "--model", f"{setting}/model"]
    assert generate_prefs.main([*command, "--out", f"{setting}/out.jsonl"]) == 0
    assert "3 pairs (33.3 % right as they stood; 80.0 %" in capsys.readouterr().out
    pairs = read_preferences(setting / "out.jsonl")
    assert [pair.images for pair in pairs] == [("tiles/red.png",)] * 3
    (reject,) = [json.loads(line) for line in (setting / "out.jsonl.rejected.jsonl").read_text().splitlines()]
    assert reject["id"] == "other"
    monkeypatch.undo()
    own = ["--out", f"{setting}/own.jsonl", "--max-new-tokens", "3", "--batch-size", "3"]
    assert generate_prefs.main([*command, *own]) == 2 and "no answer gave a pair" in capsys.readouterr().err
    assert not (setting / "own.jsonl").exists()
    lines = (setting / "own.jsonl.answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(ANSWERS)  # the model's own, whatever they are worth
    Image.new("RGB", (20, 16), (1, 2, 3)).save(setting / "tiles" / "red.png")  # of all questions
    assert generate_prefs.main([*command, *own]) == 2
    assert len((setting / "own.jsonl.answers.jsonl").read_text().splitlines()) == 2 * len(lines)  # asked again


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--editor", "model"], "--editor model needs --editor-model"),
        (["--editor", "chat", "--editor-model", "x"], "--editor chat needs --url"),
        (
            ["--editor", "chat", "--editor-model", "x", "--url", "https://example.org/v1", "--key-name", "NO_KEY"],
            "set NO_KEY",
        ),
    ],
)
def test_flags_that_do_not_fit(setting, capsys, extra, message):  # noqa: F811
    (setting / "questions.jsonl").write_text(json.dumps(next(iter(rows()))))
    command = ["edit", "--questions", f"{setting}/questions.jsonl", "--model", f"{setting}/model"]
    assert generate_prefs.main([*command, "--out", f"{setting}/out.jsonl", *extra]) == 2
    assert message in capsys.readouterr().err


def test_paths_are_checked_before_a_model_is_loaded(setting, monkeypatch, capsys):  # noqa: F811
    (setting / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows()))
    monkeypatch.setattr(
        edit_pairs_module, "load_vision_model", lambda *_: pytest.fail("loaded before the paths were checked")
    )
    command = ["edit", "--questions", f"{setting}/questions.jsonl", "--model", f"{setting}/model", "--out"]
    for extra, message in (
        (["--adapter", f"{setting}"], "holds no adapter: adapter_config.json is missing"),
        (["--model", f"{setting}/tiles"], "is not a model directory"),
        (["--editor", "model", "--editor-model", "missing"], "missing is neither a directory nor a hub id"),
    ):
        assert generate_prefs.main([*command, f"{setting}/out.jsonl", *extra]) == 2
        assert message in capsys.readouterr().err
    assert generate_prefs.main([*command, f"{setting}/questions.jsonl"]) == 2
    assert "questions.jsonl exists already" in capsys.readouterr().err


def test_images_outside_the_folder(setting, capsys):  # noqa: F811
    rows_ = list(rows())
    rows_[1]["image"] = "../x.png"
    (setting / "questions.jsonl").write_text("\n".join(map(json.dumps, rows_)))
    command = ["edit", "--questions", f"{setting}/questions.jsonl", "--model", f"{setting}/model"]
    assert generate_prefs.main([*command, "--out", f"{setting}/out.jsonl"]) == 2
    assert "questions.jsonl:2: the image ../x.png lies outside" in capsys.readouterr().err


def test_replies():
    edit = parse_reply("a", "VERDICT: wrong\nEDIT: The edited\nanswer. ")
    assert (edit.edited, edit.right) == ("The edited\nanswer.", False)
    assert parse_reply("a", "VERDICT: RIGHT EDIT: b").right
    assert parse_reply("a", "I think it is right.") is None


def test_the_truth_is_always_asked_with(asked):
    for one in asked:
        text = request(one, "some answer")[1]["content"]
        assert json.dumps(one.raw["truth"], sort_keys=True) in text and "Reference answer: x" in text
        assert "some answer" in text and one.question in text


class Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible chat model: fails as ``failures`` say, then answers."""

    failures, bodies = [], []
    reply = VERDICT = "VERDICT: WRONG\nEDIT: There is an effusion on the left."

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).bodies.append((self.path, self.headers["Authorization"], body))
        status = self.failures.pop(0) if self.failures else 200
        message = {"role": "assistant", "content": self.reply}
        content = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        content["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        content["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    Server.failures, Server.bodies, Server.reply = [], [], Server.VERDICT
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_a_chat_model_is_asked_once(asked, address, tmp_path, monkeypatch, capfd):
    """Over a real connection: failures are tried again, replies kept, nothing of the record printed."""
    monkeypatch.setenv("OUR_KEY", "secret")
    Server.failures = [503, 500]
    editor = instructed_editor(ChatEndpoint(address, "some-model", tmp_path / "replies", 1e6, "OUR_KEY"))
    pairs = [(asked[0], ANSWERS["wrong"])]
    (edit,) = editor(pairs)
    assert (edit.edited, edit.right) == ("There is an effusion on the left.", False)
    assert len(Server.bodies) == 3
    path, key, body = Server.bodies[-1]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["model"] == "some-model"
    assert ANSWERS["wrong"] in body["messages"][1]["content"]
    again = instructed_editor(ChatEndpoint(address, "some-model", tmp_path / "replies", 1e6, "OUR_KEY"))
    assert list(again(pairs)) == [edit] and len(Server.bodies) == 3
    out, err = capfd.readouterr()
    assert "effusion" not in out + err and "secret" not in out + err


def test_a_chat_model_that_refuses(asked, address, tmp_path):
    Server.failures = [401]
    editor = instructed_editor(ChatEndpoint(address, "some-model", tmp_path / "replies", 1e6))
    with pytest.raises(InputError, match=r"some-model does not answer \(401\)"):
        list(editor([(asked[0], "x")]))
    assert len(Server.bodies) == 1


def test_a_rate_must_be_positive(address, tmp_path):
    with pytest.raises(InputError, match="--per-minute must be above 0, not 0"):
        ChatEndpoint(address, "m", tmp_path / "replies", per_minute=0)


def test_requests_keep_their_distance(asked, address, tmp_path):
    endpoint = ChatEndpoint(address, "m", tmp_path / "replies", per_minute=600)
    started = time.monotonic()
    list(endpoint([request(one, one.id) for one in asked]))
    assert time.monotonic() - started >= 0.3 and len(Server.bodies) == 4
