from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import Container, Containers, ContainersUnavailableError
from tests.support.required import missing

_numbers = count(1)

StartContainer = Callable[..., Container]


@pytest.fixture(scope="session")
def containers() -> Containers:
    """buildah and podman, with a storage of their own."""
    try:
        return Containers()
    except ContainersUnavailableError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def image(containers: Containers) -> str:
    """The image of this project, built when what it is made of has changed."""
    return containers.build(containers.debian())


@pytest.fixture
def container(containers: Containers, image: str, worker_id: str) -> Iterator[StartContainer]:
    """Makes containers of the image, to be run or started; they are removed in the end."""
    with ExitStack() as stack:

        def make(*options: object, **more: Any) -> Container:
            name = f"test-{worker_id}-{next(_numbers)}"
            return stack.enter_context(Container(containers, image, name, *options, **more))

        yield make


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A folder that the image's user owns, as a volume with its `fsGroup` is."""
    import os

    folder = tmp_path / "volume"
    folder.mkdir()
    os.chown(folder, 65532, 65532)
    return folder
