"""Check the built site: each public name has its page, each link its end, each formula its TeX.

python docs/extensions/check.py build/docs
"""

import html.parser
import sys
import urllib.parse
from pathlib import Path

import public


class Page(html.parser.HTMLParser):
    """What a page of the site holds: its anchors, its links and the files that it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an anchor, a link or a file."""
        given = dict(attrs)
        self.anchors |= {given[name] or "" for name in ("id", "name") if name in given}
        self.links |= {given[name] or "" for name in ("href", "src") if name in given}


def check(folder: Path) -> list[str]:
    """Check the site.

    Args:
      folder: where it was built.
    Returns:
      What is wrong, a line each.
    """
    paths = sorted(folder.resolve().rglob("*.html"))
    pages = {path: Page(path) for path in paths if path.parent.name != "_static"}
    wrong = []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                loaded = parts.scheme.startswith("http") and link.endswith((".js", ".css"))
                wrong += [f"{name}: loads {link} from the network"] if loaded else []
                continue
            end = path if not parts.path else path.parent / urllib.parse.unquote(parts.path)
            end = end.resolve()
            if not end.exists():
                wrong.append(f"{name}: no file {link}")
            elif parts.fragment and end in pages and "_modules" not in name.parts:
                # viewcode knows the page of what a package takes from another, and not the place
                fragment = urllib.parse.unquote(parts.fragment)
                if fragment not in pages[end].anchors:
                    wrong.append(f"{name}: no anchor {link}")
    anchors = set().union(*(page.anchors for page in pages.values()))
    wrong += [f"{name}: has no page" for name in set(public.homes().values()) - anchors]
    return sorted(wrong)


if __name__ == "__main__":
    faults = check(Path(sys.argv[1]))
    print("\n".join(faults) or "every public name has a page, and every link an end")
    sys.exit(bool(faults))
