"""The text of an HTML page as a reader sees it: blocks are lines, markup and scripts are gone.

Needs beautifulsoup4, of the extra `import`.
"""

from __future__ import annotations

import re

from bs4 import BeautifulSoup
from bs4.element import NavigableString

UNREAD = ("script", "style", "noscript", "template", "svg", "title")
BLOCKS = (
    *("address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "div", "dl"),
    *("dt", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6"),
    *("header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "tr", "ul"),
)
CELLS = ("td", "th")


def text_and_title(page: bytes) -> tuple[str, str | None]:
    """The page's text, a line for each block, and its title. The encoding is the page's own."""
    soup = BeautifulSoup(page, "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title else None
    for tag in soup.find_all(UNREAD):
        tag.decompose()
    for string in soup.find_all(string=True):
        if type(string) is NavigableString and string.find_parent("pre") is None:
            string.replace_with(re.sub(r"\s+", " ", string))
    for tag in soup.find_all(BLOCKS):
        tag.insert_before("\n")
        tag.insert_after("\n")
    for tag in soup.find_all(CELLS):
        tag.insert_after(" ")
    lines = (" ".join(line.split()) for line in soup.get_text().split("\n"))
    return "\n".join(line for line in lines if line), title or None
