"""jieba and sentencepiece as oracles, and the table of other tools' scores in the chapter, measured again."""

import io
import itertools
import json
import logging
import math
import re
from importlib.metadata import distribution
from pathlib import Path

import jieba
import numpy as np
import pytest
import sentencepiece
from kexue import data
from kexue.sequences.merging import EntropyMerger
from kexue.sequences.unigram import UnigramSegmenter
from kexue.sequences.word_spans import segmentation_f1

CHAPTER = Path(__file__).parents[2] / "chapters" / "sequences" / "nlp-zero.ipynb"
MERGES = 5511  # as many as the chapter makes until text plus dictionary is shortest; a test below compares


@pytest.fixture(scope="module")
def gold():
    """The newspaper's first 300 000 characters in whole lines, as the chapter takes them."""
    lines = [line.words for line in data.peoples_daily()]
    sizes = np.cumsum([sum(map(len, words)) for words in lines])
    return [list(words) for words in lines[: np.searchsorted(sizes, 300_000, side="right")]]


@pytest.fixture(scope="module")
def lines(gold):
    return ["".join(words) for words in gold]


@pytest.fixture(scope="module")
def dictionary():
    jieba.setLogLevel(logging.ERROR)
    jieba.initialize()
    return {word: count for word, count in jieba.dt.FREQ.items() if count > 0}


@pytest.fixture(scope="module")
def sentencepiece_model(lines):
    """A tokenizer of the kind that is asked for, with as many tokens beyond characters as the chapter's merger makes."""
    runs = [run for line in lines for run in re.findall(r"[^\W_]+", line)]
    models = {}

    def model(kind):
        if kind not in models:
            file = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(runs),
                model_writer=file,
                model_type=kind,
                vocab_size=len(set("".join(runs))) + MERGES + 1,
                character_coverage=1.0,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                split_by_unicode_script=False,
                split_by_number=False,
                split_by_whitespace=False,
                max_sentencepiece_length=16,
                bos_id=-1,
                eos_id=-1,
                num_threads=1,
                minloglevel=2,
            )
            models[kind] = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
        return models[kind]

    return model


def tokenized(model, lines):
    """Lines as tokens; what is no part of a word stands alone."""
    pieces = (re.findall(r"[^\W_]+|[\W_]", line) for line in lines)
    return [[t for piece in line for t in (model.encode(piece, out_type=str) if piece[0].isalnum() else [piece])] for line in pieces]


def test_most_probable_words_are_those_of_jieba(dictionary, lines):
    """Scores are compared, not words: where two segmentations are equally probable the choice is free."""
    model = UnigramSegmenter(dictionary)
    runs = [run for line in lines[:300] for run in re.findall("[\u4e00-\u9fa5]+", line) if all(c in dictionary for c in run)]
    total = math.log(sum(dictionary.values()))

    def score(words):
        return sum(math.log(dictionary[word]) - total for word in words)

    assert len(runs) > 2000
    for run, words in zip(runs, model.segment(runs), strict=True):
        assert score(words) == pytest.approx(score(jieba.lcut(run, HMM=False)), abs=1e-9)


def test_best_segmentations_are_those_of_sentencepiece(sentencepiece_model, lines):
    peer = sentencepiece_model("unigram")
    pieces = {peer.id_to_piece(i): peer.get_score(i) for i in range(1, peer.get_piece_size())}
    model = UnigramSegmenter({piece: 1 for piece in pieces if piece})
    model.log_probability = np.array([pieces[word] for word in model.words])  # the peer's weights need not add up to one
    runs = [run for line in lines[:40] for run in re.findall(r"[^\W_]+", line)]
    for run, words in zip(runs, model.segment(runs), strict=True):
        best = peer.nbest_encode_as_pieces(run, 3)
        ours = [score for _, score in model.n_best(run, 3)]
        assert sum(pieces[w] for w in words) == pytest.approx(ours[0], abs=1e-4)
        assert ours == pytest.approx([sum(pieces[w] for w in option) for option in best], abs=1e-3)  # its scores are float32


def test_frequent_merges_are_those_of_sentencepiece(sentencepiece_model, lines):
    """Further on the order of equally frequent pairs, which is free, changes what there is to merge."""
    peer = sentencepiece_model("bpe")
    theirs = [piece for i in range(1, peer.get_piece_size()) if len(piece := peer.id_to_piece(i)) > 1]
    ours = [merge.left + merge.right for merge in EntropyMerger("frequency").fit(lines, 200).history]
    assert set(ours) == set(theirs[:200])


def shown_by_the_chapter():
    """First cell and last number of each row of the chapter's table of tools."""
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return {name: float(number) for name, number in re.findall(r"^\| ([^|]+?) \|.*\| \$([\d.]+)\$ \|$", text, flags=re.M)}


def test_table_of_tools_in_the_chapter_is_measured(sentencepiece_model, dictionary, gold, lines):
    shipped = {}
    with open(distribution("nlp-zero").locate_file("nlp_zero/dic.txt"), encoding="utf-8") as file:
        for word, count in (re.split(" +", line.strip()) for line in file):
            shipped[word] = int(count)
    found = {
        "sentencepiece, BPE": tokenized(sentencepiece_model("bpe"), lines),
        "sentencepiece, unigram": tokenized(sentencepiece_model("unigram"), lines),
        "nlp-zero's dictionary": UnigramSegmenter({word: count for word, count in shipped.items() if word and count > 0}).segment(lines),
        "jieba": [jieba.lcut(line) for line in lines],
        "jieba, dictionary alone": [jieba.lcut(line, HMM=False) for line in lines],
    }
    assert shown_by_the_chapter() == {name: round(100 * segmentation_f1(words, gold).f1, 1) for name, words in found.items()}


def test_the_chapter_stops_after_as_many_merges():
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    outputs = itertools.chain(*(cell.get("outputs", []) for cell in cells))
    glued = {o["metadata"]["scrapbook"]["name"]: o["data"] for o in outputs if "scrapbook" in o.get("metadata", {})}
    (shown,) = glued["nlp-zero-stop"].values()
    assert "".join(shown).strip("'") == str(MERGES)
