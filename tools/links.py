"""Check every link of a rendered site that stays on it, with its anchor; says which fail and exits with 1: python tools/links.py _docs

Links to the address of the site are links to its files. Links that leave it are not followed."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOST = "https://attnbootreg.github.io/attnbootreg/"


class Collector(HTMLParser):
    "The links of a page and the names that can be linked to."

    def __init__(self):
        super().__init__()
        self.links, self.names = [], set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.names |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        self.links += [attrs[key] for key in ("href", "src") if attrs.get(key)]


def read(path: Path) -> Collector:
    "A page, parsed."
    collector = Collector()
    collector.feed(path.read_text(encoding="utf-8"))
    return collector


def broken(root: Path) -> list[str]:
    "What is wrong with the links below a folder."
    pages = {path.resolve(): read(path) for path in sorted(root.rglob("*.html"))}
    complaints = [] if pages else [f"{root}: no pages"]
    for path, page in pages.items():
        for link in page.links:
            inside = link.startswith(HOST)
            parts = urlsplit(link.removeprefix(HOST) if inside else link)
            if parts.scheme or parts.netloc or (path.name == "404.html" and not inside):  # from anywhere, 404 is shown
                continue
            start = root.resolve() if inside else path.parent
            target = (start / unquote(parts.path)).resolve() if parts.path or inside else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                complaints.append(f"{path.relative_to(root.resolve())}: {link} leads nowhere")
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].names
                and not re.match(r"top$", parts.fragment)
            ):
                complaints.append(f"{path.relative_to(root.resolve())}: {link} has no such place")
    return complaints


if __name__ == "__main__":
    found = broken(Path(sys.argv[1]))
    print("\n".join(found) or "every link leads somewhere")
    sys.exit(bool(found))
