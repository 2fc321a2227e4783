"""Ordinary public texts: manuals out of Debian packages, downloaded and turned into plain text.

    python benchmarks/texts.py FOLDER [--names NAME ...]

writes one ``.txt`` a manual, and ``texts.json`` with each package's version and the text's SHA-256.
Needs ``apt-get``, ``dpkg-deb`` and ``beautifulsoup4``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import tempfile
from pathlib import Path

from bs4 import BeautifulSoup

PACKAGES = {
    "handbook": ("debian-handbook", "usr/share/doc/debian-handbook/html/en-US"),
    "rust": ("rust-doc", "usr/share/doc/rust-doc/html/book"),
    "postgresql": ("postgresql-doc-15", "usr/share/doc/postgresql-doc-15/html"),
    "gimp": ("gimp-help-en", "usr/share/gimp/2.0/help/en"),
    "securing": ("harden-doc", "usr/share/doc/harden-doc/html/en-US"),
    "installation": ("installation-guide-amd64", "usr/share/doc/installation-guide-amd64/en"),
}
"""Name of a text: Debian package and the folder of its pages in it."""

MOST_CHARACTERS = 800_000
LEAST_PAGE = 2_000  # characters; indexes and tables of contents of one screen are left out


def page_text(page: bytes) -> str:
    """The paragraphs and code of an HTML page, without navigation."""
    soup = BeautifulSoup(page, "html.parser")
    for part in soup(["script", "style", "nav", "head", "header", "footer"]):
        part.decompose()
    text = soup.get_text()
    text = re.sub(r"[ \t\xa0]+", " ", text)
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text).strip()


def manual_text(folder: Path) -> str:
    """All pages of a manual in the order of their names."""
    pages: list[str] = []
    size = 0
    for path in sorted(folder.glob("*.html")):
        text = page_text(path.read_bytes())
        if len(text) >= LEAST_PAGE and size < MOST_CHARACTERS:
            pages.append(text)
            size += len(text)
    return "\n\n".join(pages)[:MOST_CHARACTERS]


def fetch(package: str, folder: Path) -> tuple[Path, str]:
    """Download and unpack a Debian package into ``folder``; its files and its version."""
    subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
    archive = next(folder.glob(f"{package}_*.deb"))
    files = folder / package
    subprocess.run(["dpkg-deb", "-x", archive, files], check=True)
    return files, archive.name.split("_")[1]


def main() -> None:
    """Write the texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--names", nargs="+", choices=list(PACKAGES), default=list(PACKAGES))
    options = parser.parse_args()
    out: Path = options.folder
    out.mkdir(parents=True, exist_ok=True)
    made = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names:
            package, pages = PACKAGES[name]
            files, version = fetch(package, Path(scratch))
            text = manual_text(files / pages)
            (out / f"{name}.txt").write_text(text, encoding="utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            made[name] = {"package": package, "version": version, "sha256": digest}
            print(f"{name}: {len(text):,} characters from {package} {version}")
    (out / "texts.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
