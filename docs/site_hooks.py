"""Hooks of mkdocs (mkdocs.yml): the site begins with README.md, and links to files of the repository lead to them.

Pages link to each other and to files as GitHub expects it, by paths relative to the page. A linked file outside of
docs/ becomes a page of the site that shows its content.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
HOME, LISTING = "index.md", "README.md"  # of the site: README.md, and docs/README.md, which GitHub shows for its folder
FILES = "files"  # the site's folder for files outside of docs/
# A fenced block, which stays as it is, or the beginning of a relative link and its path.
_LINK = re.compile(r'^```.*?^```$|(\]\(|src=")(?!\w+:|[#/])([^)#\s"]+)', re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"<code>([^<>\s]{1,36})</code>")  # that fits on a phone
# What a browser would fetch from elsewhere to show a page.
_FETCHED = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="?((?:https?:)?//[^\s">]+)|@import url\((http[^)]+)')
_STYLES = re.compile(r'<link\b[^>]*\brel="?(?:stylesheet|preconnect)"?[^>]*\bhref="?((?:https?:)?//[^\s">]+)')
_log = logging.getLogger("mkdocs.hooks.site")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings get GitHub's anchors, so that a link to a heading works in both places."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README.md as the first page, and a page for each file outside of docs/ that some page links to."""
    listing = files.get_file_from_path(LISTING)
    assert listing is not None, "docs/README.md lists the pages"
    listing.dest_uri = "pages.html"
    files.append(File.generated(config, HOME, content=(ROOT / "README.md").read_text(encoding="utf-8")))
    pages = list(files.documentation_pages())
    for page in pages:  # which grows: a linked page links to others
        for path in _linked(page.src_uri, page.content_string):
            uri = _uri_of(path)
            if (ROOT / path).is_file() and uri.startswith(f"{FILES}/") and files.get_file_from_path(uri) is None:
                shown = File.generated(config, uri, content=_content(path), inclusion=InclusionLevel.NOT_IN_NAV)
                files.append(shown)
                pages.append(shown)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Relative links, as GitHub follows them from the page's place in the repository, become the site's."""

    def moved(link: re.Match[str]) -> str:
        if link[1] is None:
            return link[0]
        target = _uri_of(_path_of(page.file.src_uri, link[2]))
        return link[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Flags and file names stay on one line, where they would break behind a hyphen (site.css)."""
    return _WORD.sub(r'<code class="word">\1</code>', html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warns (an error under `strict`) of what a reader without network would not see."""
    for pattern in (_FETCHED, _STYLES):
        for match in pattern.finditer(output):
            _log.warning("%s fetches %s; the site must need no network", page.file.src_uri, match[0])
    return output


def _linked(uri: str, markdown: str) -> Iterator[str]:
    """The paths from the repository's root that a page links to."""
    for _, target in _LINK.findall(markdown):
        if target:
            yield _path_of(uri, target)


def _path_of(uri: str, target: str) -> str:
    """Where a relative link of a page leads, from the repository's root."""
    if uri == HOME:
        folder = ""
    elif uri.startswith(f"{FILES}/"):
        folder = posixpath.dirname(uri.removeprefix(f"{FILES}/"))
    else:
        folder = posixpath.join("docs", posixpath.dirname(uri))
    return posixpath.normpath(posixpath.join(folder, target))


def _uri_of(path: str) -> str:
    """The site's source for a path from the repository's root."""
    if path == "README.md":
        return HOME
    if path == "docs":
        return LISTING
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{FILES}/{path.removesuffix('.md')}.md"


def _content(path: str) -> str:
    """A file as a page: Markdown as it is, everything else as one block."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = posixpath.splitext(path)[1].removeprefix(".")
    return f"# {posixpath.basename(path)}\n\n`{path}`\n\n``````{language}\n{text}\n``````\n"
