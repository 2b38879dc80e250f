"""The shell of every HTML page that is written here: one file with inline styles, without scripts or resources."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from maejax.storage.atomic import write_whole


def write_page(path: Path, title: str, parts: Iterable[str], footer: Iterable[str] = ()) -> None:
    """Write a page with a title, parts of HTML and sentences at the foot to `path`, replacing what is there."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    lines = "\n".join(f"<p>{escape(line)}</p>" for line in (*footer, "Written by maejax.") if line)
    page = template.substitute(title=escape(title), body="\n".join(filter(None, parts)), footer=lines)
    write_whole(path, page)


def section(heading: str, body: str) -> str:
    """Return a section of a page with its heading, "" without a body."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>" if body else ""


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """Return a table with column titles and rows of HTML; where it is too wide for the page, it scrolls by itself."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "\n".join(rows)
    return f'<div class="wide"><table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def command_line(command: str) -> str:
    """Return a command as a block of HTML that wraps."""
    return f'<pre class="wrap">{escape(command)}</pre>'
