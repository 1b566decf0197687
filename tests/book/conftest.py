"""Shared by the tests of ``kexue.book``: an IPython shell, which captures displays, and a small cluster."""

import pytest
from IPython.core.interactiveshell import InteractiveShell


@pytest.fixture(scope="session", autouse=True)
def shell():
    return InteractiveShell.instance()


@pytest.fixture(scope="module")
def address():
    """A scheduler with one worker in this process: fast, and its tasks count for coverage."""
    from distributed import LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp", "host": "127.0.0.1"}
    with LocalCluster(**options, dashboard_address="127.0.0.1:0", memory_limit=None) as cluster:
        yield cluster.scheduler_address
