"""Shared by the tests of ``kexue.book``: displays need an IPython shell to be captured."""

import pytest
from IPython.core.interactiveshell import InteractiveShell


@pytest.fixture(scope="session", autouse=True)
def shell():
    return InteractiveShell.instance()
