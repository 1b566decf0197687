"""Tests of the loader of the ephemeris file."""

import dataclasses

import pytest
from kexue import data
from kexue.data import sky


def test_path_leads_to_a_kernel_in_jpl_format():
    path = data.ephemeris_path()
    with path.open("rb") as file:
        assert file.read(7) == b"DAF/SPK"


def test_missing_package_and_another_file_name_the_line(monkeypatch):
    for change, message in (({"package": "not-installed-anywhere"}, "is not installed"), ({"sha256": "0" * 16}, "with another file")):
        monkeypatch.setattr(sky, "_DE421", dataclasses.replace(sky._DE421, **change))
        with pytest.raises(data.MissingData, match=rf"{message}.*pip install --no-deps skyfield-data==7\.0\.0$"):
            data.ephemeris_path()
        monkeypatch.undo()
