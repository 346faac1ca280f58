"""Consoles that print names from files without their control characters."""

from rich.console import Console, HighlighterType, JustifyMethod, OverflowMethod
from rich.style import Style
from rich.text import Text

from robustly.output_text import plain_text


class PlainConsole(Console):
    """A console whose texts cannot control the terminal; styles of Rich stay."""

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        """Text as Rich shows it, its control characters replaced."""
        return super().render_str(
            plain_text(text, kept="\n\t"),
            style=style,
            justify=justify,
            overflow=overflow,
            emoji=emoji,
            markup=markup,
            highlight=highlight,
            highlighter=highlighter,
        )


def print_text(console: Console, text: str) -> None:
    """Print a text as it is: long lines are not cut, brackets and numbers have no meaning."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)
