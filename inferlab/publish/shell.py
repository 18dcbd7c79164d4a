"""Finds the commands in Markdown and in shell text, and the words they are made of."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from inferlab.publish.markdown_positions import myst_parser
from inferlab.publish.prose import VERBATIM

SHELL_BLOCK = re.compile(r"(?:\{code(?:-block)?\}\s*)?(?:bash|console|sh|shell|text)?\s*")
# A comment comes first: an apostrophe in it opens no quote. Only JSON may go over several lines.
LOGICAL_LINE = re.compile(r"(?:(?<!\S)#.*|'[\[{][^']*'|\\\n|.)+")
PLACEHOLDER = "PLACEHOLDER"
STANDS_FOR_A_VALUE = re.compile(r"\$\([^()]*\)|\$\{?\w+\}?|<[^\s<>][^<>\n]*>")
REDIRECTED_DESCRIPTOR = re.compile(r"(?<=\s)\d(?=>)")
OPERATOR = re.compile(r"[();<>|&]+")
BEFORE_THE_PROGRAM = re.compile(r"\$|\w+=.*", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command as written: `line` is the line of its page on which `text` begins."""

    text: str
    line: int
    words: tuple[str, ...]

    def line_of(self, word: str) -> int:
        """The line on which `word` stands; the first if it is not written out there."""
        return self.line + self.text.count("\n", 0, max(self.text.find(word), 0))


def commands_in_markdown(markdown: str, line: int = 1) -> Iterator[Command]:
    """Every command in the shell blocks and the code spans of `markdown`, which begins at `line`.

    A block counts if it is marked as bash, console, shell or text, or not marked at all.
    """
    for token in myst_parser().parse(markdown):
        first = line + token.map[0] if token.map else line
        if token.type in ("fence", "colon_fence"):
            if SHELL_BLOCK.fullmatch(token.info):
                yield from commands_in_shell(token.content, first + 1)
            elif token.info.startswith("{") and not VERBATIM.match(token.info):
                yield from commands_in_markdown(token.content, first + 1)
        elif token.type == "inline":
            # A span may go over two lines; its content has a space in place of the line's end.
            text, end = token.content.replace("\n", " "), 0
            for child in token.children or []:
                if child.type == "code_inline":
                    start = text.index(child.content, end)
                    end = start + len(child.content)
                    lines = token.content.count("\n", 0, start)
                    yield from commands_in_shell(child.content, first + lines)


def commands_in_shell(text: str, line: int = 1) -> Iterator[Command]:
    """Every command in shell text, without what redirects it and what only stands before it."""
    for match in LOGICAL_LINE.finditer(text):
        begins = line + text.count("\n", 0, match.start())
        for words in _simple_commands(match[0]):
            while words and BEFORE_THE_PROGRAM.fullmatch(words[0]):
                del words[0]
            if words:
                # A notebook's mark of a shell command touches the program.
                words[0] = words[0].lstrip("!%")
                yield Command(match[0], begins, tuple(words))


def _simple_commands(text: str) -> list[list[str]]:
    plain = STANDS_FOR_A_VALUE.sub(PLACEHOLDER, text.replace("\\\n", " "))
    lexer = shlex.shlex(REDIRECTED_DESCRIPTOR.sub(" ", plain), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    # shlex would take a # inside a word for a comment.
    lexer.commenters = ""
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word.startswith("#"):
                break
            if OPERATOR.fullmatch(word):
                commands.append([])
            elif word not in ("...", "…"):
                commands[-1].append(word)
    except ValueError:
        # What a program printed need not be shell.
        return [plain.split()]
    return commands
