"""Renders HTML pages: one file each, without scripts or external resources, in light and dark colours."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_BASE = Path(__file__).parent / "templates"
# Colours that colour-blind people can distinguish (Okabe and Ito), then greys and lines: colour on a light page, and
# its counterpart on a dark one.
_ON_DARK = {
    "#0072b2": "#4aa3df",
    "#d55e00": "#f08a4b",
    "#009e73": "#2fc79a",
    "#cc79a7": "#e29fc4",
    "#e69f00": "#f2b933",
    "#56b4e9": "#8fd0f5",
    "#8b5cf6": "#b094ff",
    "#111827": "#e6eaf0",
    "#374151": "#c3cbd6",
    "#6b7280": "#98a3b3",
    "#9ca3af": "#7f8a99",
    "#b8bec7": "#6a7482",
    "#cfd4da": "#56606d",
    "#d1d5db": "#45505d",
    "#e1e4e8": "#454e5a",
    "#e5e7eb": "#36404c",
    "#eef0f3": "#2a333e",
}


def render_page(templates: Path, name: str, **values: object) -> str:
    """Renders a template that extends `page.html.j2`. Every value is escaped, unless it is `Markup`.

    Args:
        templates: Folder of the template.
        name: File name of the template.
        values: Variables of the template.
    """
    environment = Environment(
        loader=FileSystemLoader([templates, _BASE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["adaptive"] = adaptive
    return environment.get_template(name).render(**values)


def adaptive(colour: str) -> str:
    """A colour of the palette as CSS that follows the page's colour scheme."""
    return f"light-dark({colour}, {_ON_DARK[colour]})"


def adaptive_svg(svg: str) -> str:
    """A figure that is drawn in colours of the palette, with colours that follow the page's colour scheme."""
    for colour in _ON_DARK:
        svg = svg.replace(colour, adaptive(colour)) if colour in svg else svg
    return svg


def shown_text(text: str) -> str:
    """Replaces control characters of a text from data, which may hide or reorder text, by their code points."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else f"\\u{ord(character):04x}"
        for character in text.strip("\n")
    )
