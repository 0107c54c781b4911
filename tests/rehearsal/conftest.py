"""The hosts of the first day, with all that they publish."""

import pytest
from first_day import World
from hosts import Hosts
from publishers import write_archives, write_tars, write_weights


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The server, and what is put in place by hand."""
    folder = tmp_path_factory.mktemp("published")
    with Hosts() as server:
        network = write_weights(folder / "hub", folder / "pytorch")
        write_tars(folder / "hub/datasets/pixparse/cc3m-wds", shards=2, pairs=3)
        archives = write_archives(folder / "archives")
        yield World.of(folder, server, network, archives)
