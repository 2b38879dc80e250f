"""The shell of every HTML page that is written here: one file with its styles and script inside; it loads nothing."""

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
    titles, body = f"<thead><tr>{titles}</tr></thead>\n" if titles else "", "\n".join(rows)
    return f'<div class="wide"><table>\n{titles}<tbody>\n{body}\n</tbody>\n</table></div>'


def command_line(command: str) -> str:
    """Return a command as a block of HTML that wraps."""
    return f'<pre class="wrap">{escape(command)}</pre>'


def details(summary: str, body: str) -> str:
    """Return HTML that is folded away under its summary."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{body}\n</details>"


def tiles(facts: Iterable[tuple[str, str, str]]) -> str:
    """Return figures with name, value and remark as boxes beside one another, "" without any."""
    boxes = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in facts
    ]
    return f'<dl class="tiles">{"".join(boxes)}</dl>' if boxes else ""
