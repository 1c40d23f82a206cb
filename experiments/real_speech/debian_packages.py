"""Files out of Debian's packages, without installing them."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.real_speech.corpus_folder import CorpusError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"


@dataclass(frozen=True)
class Package:
    """A package of Debian; those outside `main` are not in the lists of most machines."""

    name: str
    component: str = "main"


def fetch(package: Package, folder: Path) -> Path:
    """The package's file, from the mirrors this machine is set up for.

    Where these lack the component that the package is in, it is looked up in lists of its own within `folder`; the
    machine's set-up is left as it is.

    Raises:
        CorpusError: it cannot be had; the message says how to get it by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = f"Get the file from https://packages.debian.org/{package.name} and give it with --deb."
    try:
        found, reason = _download(package, folder, ())
        if found is None and package.component != "main":
            found, reason = _download(package, folder, _own_lists(package, folder))
    except FileNotFoundError as error:
        raise CorpusError(f"there is no apt-get on this machine. {by_hand}") from error
    if found is None:
        raise CorpusError(
            f"apt-get download {package.name} failed: {reason}\n"
            f"Run `apt-get update` first. If that does not help: {by_hand}"
        )
    return found


def _download(package: Package, folder: Path, options: Sequence[str]) -> tuple[Path | None, str]:
    """The file, or None and the reason."""
    done = _apt(*options, "download", package.name, folder=folder)
    found = sorted(folder.glob(f"{package.name}_*.deb")) or sorted(folder.glob("*.deb"))
    if done.returncode or not found:
        return None, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return found[0], ""


def _own_lists(package: Package, folder: Path) -> Sequence[str]:
    """Options of apt-get that look the package's component up; its lists are fetched."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    source = folder / "sources.list"
    source.write_text(f"deb {signed}{MIRROR} {SUITE} {package.component}\n", encoding="utf-8")
    settings = {
        "Dir::Etc::SourceList": source,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
        "Dir::Cache": folder / "cache",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    _apt(*options, "update", folder=folder)
    return options


def _apt(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["apt-get", *words], cwd=folder, capture_output=True, text=True, check=False)


def unpack(deb: Path, tree: Path) -> None:
    """The files of a package.

    Raises:
        CorpusError: it is not there, or no package.
    """
    if not deb.is_file():
        raise CorpusError(f"there is no package at {deb}")
    try:
        done = subprocess.run(["dpkg-deb", "-x", str(deb), str(tree)], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CorpusError("there is no dpkg-deb on this machine; install dpkg") from error
    if done.returncode:
        raise CorpusError(f"{deb} cannot be unpacked: {done.stderr.strip()}")
