"""Retrieval by meaning: pieces of texts, pooling by hand, cut-off, and the commands with a tiny encoder."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

import generate_prefs
from mint.data.cases import RETRIEVED
from mint.data.preferences import read_preferences
from mint.data.retrieval import Passage
from mint.data.text_encoder import TextEncoder
from mint.errors import InputError
from mint.evaluation.dense_retrieval import DenseRetriever, SentenceEncoder
from mint.models import init_model, save_model
from mint.synthetic.cohort import sample_cohort
from tests.reference.bert_inputs import TINY
from tests.test_commands import phenopacket

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij", *(f"##{letter}" for letter in "abcdefghij"), ","]


@pytest.fixture
def folder(tmp_path):
    save_model(init_model(TINY | {"initializer_range": 0.3}, seed=1), tmp_path / "encoder")
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.save(f"{tmp_path}/encoder/tokenizer.json")
    pool(tmp_path / "encoder", mean_tokens=True)
    return tmp_path / "encoder"


def pool(folder, **ways):
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {f"pooling_mode_{way}": on for way, on in {"cls_token": False, **ways}.items()}
    settings |= {"word_embedding_dimension": 24, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "text, size, overlap, pieces",
    [
        ("a b c d e", 5, 2, ["a b c d e"]),
        ("a b c d e", 3, 1, ["a b c", "c d e"]),
        ("a b c d e f", 3, 1, ["a b c", "c d e", "e f"]),
        ("ab, cde fg", 3, 0, ["ab,", "cde", "fg"]),  # words of two and three ids are not torn
        ("abc a bc d", 3, 2, ["abc", "a bc", "bc d"]),
        ("a bc d ef", 4, 3, ["a bc d", "d ef"]),  # a word of the overlap that does not fit is left out
        ("abcdef a", 3, 1, ["abcdef", "a"]),
        ("", 3, 1, []),
    ],
)
def test_pieces_by_hand(folder, text, size, overlap, pieces):
    assert TextEncoder(folder, 16).pieces(text, size, overlap) == pieces


def test_vectors_are_pooled_and_of_unit_length(folder):
    texts = ["a", "a b c d", "abc, j"]
    mean = SentenceEncoder(folder)
    pool(folder, cls_token=True)
    first = SentenceEncoder(folder)
    for encoder, pick in ((mean, lambda states: states.mean(0)), (first, lambda states: states[0])):
        vectors = encoder.encode(texts)
        for text, vector in zip(texts, vectors, strict=True):
            with torch.no_grad():
                states = encoder.model(torch.tensor([encoder.text.encode(text)[0]]))[0]  # alone, without padding
            expected = pick(states) / pick(states).norm()
            assert torch.allclose(vector, expected, atol=1e-6)


def test_long_texts_are_cut_into_pieces_of_the_encoders_length(folder):
    encoder = SentenceEncoder(folder)
    long = " ".join("abcdefghij" * 5)
    pieces = encoder.pieces(long, 256, 4)
    assert encoder.limit == 16 and len(pieces) == 5 and not any(encoder.text.encode(piece)[1] for piece in pieces)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    assert len(SentenceEncoder(folder).pieces(long, 256, 0)) == 9
    retriever = DenseRetriever([Passage("x", long), Passage("y", "j i h")], encoder, 256, 4)
    assert len(retriever.passages) == 6 and retriever.passages[0] == Passage("x", pieces[0])
    assert retriever.scores(long)[0] == pytest.approx(1, abs=1e-5)  # the note's best piece


def test_passages_below_the_cut_off_and_its_own_are_left_out(folder):
    encoder = SentenceEncoder(folder)
    passages = [Passage("1", "a b c"), Passage("2", "j i h"), Passage("3", "a b c d")]
    everything = DenseRetriever(passages, encoder, 9, 2)
    scores = everything.scores("a b c")
    assert scores[0] == pytest.approx(1, abs=1e-5) and scores[2] > scores[1]
    assert everything.retrieve(["a b c"], 3) == [["a b c", "a b c d", "j i h"]]
    assert everything.retrieve(["a b c"], 3, ["1"]) == [["a b c d", "j i h"]]
    some = DenseRetriever(passages, encoder, 9, 2, least=float(scores[2]) - 1e-4)
    assert some.retrieve(["a b c"], 3) == [["a b c", "a b c d"]]


def test_pairs_with_passages_found_by_an_encoder(folder, tmp_path, capsys):
    (tmp_path / "cases").mkdir()
    for case in sample_cohort(8, seed=1):
        (tmp_path / "cases" / f"{case.id}.json").write_text(json.dumps(phenopacket(case)))
    command = f"disease --cases {tmp_path}/cases --retrieve {tmp_path}/cases --top-k 2 --bottom-q 2 --device cpu"
    command += f" --retrieve-encoder {folder} --chunk-tokens 12 --chunk-overlap 2"
    for cut_off, out in (("-1", "all"), ("1.1", "none")):
        arguments = ["--cut-off", cut_off, "--out", f"{tmp_path}/{out}.jsonl"]
        assert generate_prefs.main([*command.split(), *arguments]) == 0
    for pair in read_preferences(tmp_path / "all.jsonl"):
        *_, third = pair.prompt[1]["content"].split("\n\n")[1].splitlines()
        words = third.removeprefix("[3] ")
        assert third.startswith("[3] ") and len(SentenceEncoder(folder).text.encode(words)[0]) <= 14
    assert all(RETRIEVED not in pair.prompt[1]["content"] for pair in read_preferences(tmp_path / "none.jsonl"))
    assert generate_prefs.main([*command.split(), "--retrieve-encoder", str(tmp_path), "--out", "x.jsonl"]) == 2
    assert "--retrieve-encoder" in capsys.readouterr().err


def test_what_is_no_sentence_encoder(folder, tmp_path):
    with pytest.raises(InputError, match="cannot overlap"):
        DenseRetriever([Passage("1", "a")], SentenceEncoder(folder), 9, 9)
    with pytest.raises(InputError, match="no passages"):
        DenseRetriever([Passage("1", " ")], SentenceEncoder(folder), 9, 1)
    pool(folder, max_tokens=True)
    with pytest.raises(InputError, match="pooling by max_tokens is not supported"):
        SentenceEncoder(folder)
