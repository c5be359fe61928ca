"""Hooks of the documentation: the help of the command line as pages, and docstrings as Markdown."""

import contextlib
import io
import os
import re

import griffe

HELP = re.compile(r"^<!-- help: (.+) -->$", re.M)
ARGUMENT = re.compile(r"(?:`?\w+`?, )*`?[a-z]\w*`?: ")  # how a line about an argument or a field begins
HEADING = re.compile(r"([A-Z][\w ]+):?\n {4}\S.*")  # the two first lines of a block with a heading
ITEM = dict.fromkeys(("Args", "Raises"), re.compile(r"[\w`, ]+: ")) | {"Returns": re.compile(r"(?!)")}  # of its lines


def on_page_markdown(markdown: str, **_) -> str:
    """`<!-- help: train -->` becomes what `ssl-fast train --help` prints."""
    return HELP.sub(lambda found: f"```text\n{command_help(found[1].split())}\n```", markdown)


def command_help(words: list[str]) -> str:
    from ssl_fast.cli.main import main

    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(io.StringIO()) as text:
        status = main([*words, "--help"])
    if status or not text.getvalue():
        raise ValueError(f"help: {' '.join(words)}: expected a command of ssl-fast")
    return text.getvalue().rstrip()


class Docstrings(griffe.Extension):
    """Docstrings as Markdown, see `as_markdown`."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value, arguments=not obj.is_module)


def as_markdown(text: str, arguments: bool = True) -> str:
    """Headings with an indented block get bold, and each line of the block becomes an item of a list. So does, with
    `arguments`, each `name: ...` that begins a line or a sentence. Asterisks stay asterisks, indented code stays code.
    """
    lines, out, block, in_list, in_code = text.split("\n"), [], None, False, False
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if not line.strip():
            block, in_list, in_code = None, False, False
        elif not before.strip() and (heading := HEADING.fullmatch("\n".join(lines[number : number + 2]))):
            block, line = heading[1], f"**{heading[1]}**\n"
        else:
            line = line.removeprefix("    ") if block else line
            in_code = in_code or (line.startswith("    ") and not before.strip())
            if not in_code:
                line = re.sub(r"(`[^`]*`)|\*", lambda found: found[1] or r"\*", line)
                if block and ITEM.get(block, re.compile(r"\S")).match(line):
                    line = f"* {line}"
                elif arguments and not block and number:
                    begins = ARGUMENT.match(line)
                    line = re.sub(rf"(?<=[.;]) (?={ARGUMENT.pattern})", "\n* ", line) if in_list or begins else line
                    line = f"* {line}" if begins else line
                    line = f"\n{line}" if begins and not in_list else line
                    in_list = in_list or bool(begins)
        out.append(line)
    return "\n".join(out)
