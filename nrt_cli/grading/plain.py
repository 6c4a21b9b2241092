r"""A written answer in one way of writing, and what it says its answer is: what every grader reads first.

Pure functions of text. None raises, whatever the text, and all take a time that grows as the text does: no pattern
meets a run of white space, and none that may fail looks again at what another start has seen.
"""

import re
import unicodedata
from functools import cache
from itertools import pairwise

_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
_LOWERED = re.compile("[\u2080-\u2089\u208a\u208b]+")
_SQUARED = re.compile("[\u3300-\u33ff]")  # whole units in one sign, such as that of square metres
_CIRCLED = re.compile("(?<=\\w)[\u2460-\u249b\u24ea-\u24ff\u2776-\u2793]+")  # a note's mark
_HALVES = re.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2010\u2011\u2012", "-"),
        **dict.fromkeys("\u2018\u2019", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u00ba\u02da", "\u00b0"),
        "\u2044": "/",
        "\u2215": "/",
        "\u066c": ",",
        "\u066b": ".",
    }
)
_LATEX = {
    "\u221e": r"\infty ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u00d7": r"\times ",
    "\u00f7": r"\div ",
    "\u03c0": r"\pi ",
    "\u00b0": r"^\circ ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u222a": r"\cup ",
    "\u221a": r"\sqrt ",
}
_ROOT = re.compile(r"\u221a ?(?:\(([^()]*)\)|(\d+|\w))")
_GROUPED = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f'\u2019_]|,?\\[,!; ]|\{,\})(?=\d{3}(?!\d))")
_COMMAS = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:,\d{3})+(?![\w,])")
_WRAPPED = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox) ?\{([^{}]*)\}")
_TOLD = re.compile(r"####|(?i:<answer>|\banswer\b[*_]*(?:\sis\b(?!\snot\b)|\s?[:=])[*_:=\s]*)")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?=[{\\]|[-+]?\.?\d|[A-Za-z](?![A-Za-z]))")
_REASON = re.compile(r"(?i)[,;]? \(?(?:because|since|as|where|when|if|for)\b")
_WHOLE = re.compile(r"[-+]?\.?\d+(?:[.,]\d+)*")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_ARGUMENTS = dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac", "binom", "dbinom", "tbinom"), 2) | dict.fromkeys(
    ("sqrt", "text", "textbf", "textit", "textrm", "mathrm", "mathbf", "mathit", "mathbb", "mathcal", "mbox"), 1
)
_INSIDE = r"((?:[^$\\]|\\[\s\S])+)"
_FORMULA = re.compile(
    rf"(?<!\\)\$\${_INSIDE}\$\$|(?<!\\)\${_INSIDE}\$|\\\(((?:[^\\]|\\(?!\())+?)\\\)|\\\[((?:[^\\]|\\(?!\[))+?)\\\]"
)


def plain(text: str, latex: bool = False) -> str:
    r"""A text in plain signs: ASCII digits, minus signs, quotes and spaces, no sign that cannot be seen, no empty line.

    Raised digits become powers (`cm\u00b2` is `cm^2`), lowered ones indices; nothing becomes a digit that was none.
    What groups thousands goes.

    Args:
        latex: for mathematics: signs of Unicode's own become LaTeX. Otherwise LaTeX's and Markdown's ways of setting
            text are undone, and numbers lose the commas between thousands, which in mathematics may be those of a list.
    """
    text = _GROUPED.sub("", text)
    if not text.isascii():
        text = _CIRCLED.sub("", text)
        text = _SQUARED.sub(lambda sign: _composed_of(sign[0]), text)
        text = _RAISED.sub(lambda run: "^" + _grouped(run[0]), text)
        text = _LOWERED.sub(lambda run: "_" + _grouped(run[0]), _HALVES.sub(" ", text))
        text = "".join(map(_seen, unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)))
    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line and not line.isspace())
    if latex:
        return "".join(_LATEX.get(c, c) for c in _ROOT.sub(r"\\sqrt{\1\2}", text))
    for _ in range(3):  # one in the other
        text = _WRAPPED.sub(r"\1", text)
    text = text.replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=[A-Za-z])_(?:(\d)|\{(\d+)\})", r"\1\2", text)  # the 2 of H_2O
    return _COMMAS.sub(lambda number: number[0].replace(",", ""), text)


def _composed_of(sign: str) -> str:
    return "".join(chr(int(code, 16)) for code in unicodedata.decomposition(sign).split()[1:])


def _grouped(digits: str) -> str:
    digits = unicodedata.normalize("NFKC", digits).translate(_SIGNS)
    return digits if len(digits) == 1 else f"{{{digits}}}"


@cache
def _seen(sign: str) -> str:
    """A sign, in ASCII where it is a digit; nothing where it cannot be seen."""
    if unicodedata.category(sign) == "Cf":
        return ""
    digit = unicodedata.decimal(sign, None)
    return sign if digit is None else str(digit)


def bare(text: str) -> str:
    """A short answer in plain signs without case, marks of lists and LaTeX, and punctuation around it.

    Of a row of brackets, as they are, all count.
    """
    whole = " ".join(plain(text).casefold().split())
    whole = re.sub(r" ?([,;/()\[\]{}<>]) ?", r"\1", re.sub(r"\A(?:#+|[-*\u2022]) (?=\D)", "", whole))
    inside = whole.strip("\"'`*_ .,;:!?()[]{}\u00ab\u00bb")
    if not re.search(r"\w", inside):
        return whole.strip("\"'`*_$ .,;:!?") or whole
    if re.fullmatch(r"\$[^$]+\$", inside):
        inside = inside.strip("$ ")
    # The point of .5 belongs to it.
    return f".{inside}" if whole[: whole.find(inside)].endswith(".") and inside[:1].isdigit() else inside


def told(text: str, latex: bool = False) -> list[str]:
    r"""What a reply says its answer is, the likeliest first, in plain signs.

    What is in the last \boxed{}, then what follows `####`, `<answer>`, `answer is` or `Answer:` up to the next,
    the last first; never what the answer is not.
    """
    inside, text = plain(boxed(text) or "", latex), plain(text, latex)
    found = list(_TOLD.finditer(text))
    ends = [one.start() for one in found[1:]] + [len(text)] * bool(found)
    rests = [text[one.end() : end].strip() for one, end in zip(found, ends, strict=True)]
    return [rest for rest in (inside, *reversed(rests)) if rest]


def result(line: str) -> str:
    """What an equation in a line comes to, without the reasons that follow it."""
    return _REASON.split(line, maxsplit=1)[0].rpartition("=")[2]


def formulas(text: str) -> list[str]:
    r"""What stands in `$`, `$$`, `\(` or `\[`, in order."""
    return ["".join(parts).strip() for parts in _FORMULA.findall(text)]


def boxes(text: str) -> list[str]:
    """What stands in each box, in order."""
    starts = [found.start() for found in _BOX.finditer(text)]
    return [boxed(text[at:to]) or "" for at, to in pairwise([*starts, len(text)])]


def boxed(text: str) -> str | None:
    r"""The argument of the last \boxed, \fbox or \framebox; None where there is none, empty where it is open.

    As LaTeX reads it: a group in braces, of which escaped ones are none, or one token: a command with its own
    arguments, or a character, here a whole number or a letter that begins no word.
    """
    starts = [found.end() for found in _BOX.finditer(text)]
    if not starts:
        return None
    start = at = starts[-1]
    if text[at] == "{":
        return text[at + 1 : _closing(text, at) or at + 1].strip().strip("$").strip()
    wanted = 1
    while wanted:
        while text[at : at + 1].isspace():
            at += 1
        if text[at : at + 1] == "{":
            at = (_closing(text, at) or len(text)) + 1
        elif command := _COMMAND.match(text, at):
            wanted += _ARGUMENTS.get(command[1], 0)
            at = command.end()
            if command[1] == "sqrt" and text[at : at + 1] == "[":  # which root
                at = max(at, text.find("]", at) + 1)
        elif at < len(text):
            number = _WHOLE.match(text, at) if at == start else None
            at = number.end() if number else at + 1
        else:
            return ""
        wanted -= 1
    return text[start:at].strip()


def _closing(text: str, at: int) -> int | None:
    """Where the brace that opens at `at` closes."""
    depth = 0
    for found in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, at):
        depth += (found[0] == "{") - (found[0] == "}")
        if depth == 0:
            return found.start()
    return None
