"""Text as countable words, in any language.

What is not a word is counted under a name of its own, so that its values do not flood the vocabulary: a number is
`[number]`, a span of code `[code]`, an address `[url]`. A LaTeX command is a word, `\\boxed`.
"""

import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import regex

from nrt_analysis.frames import plain_text

# Scripts written without spaces. Their runs are counted as overlapping pairs of characters, as search engines index
# them: finding words would take a dictionary for each language.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_LETTER = rf"[[\p{{L}}]--{_UNSPACED}]"
_MORE = rf"[[\p{{L}}\p{{M}}\u200c\u200d]--{_UNSPACED}]"  # joiners are part of Persian and Indic words

_PIECE = regex.compile(
    rf"""
    (?P<code>    ```.*?(?:```|\Z) | `[^`\n]+` )             # a fence may be cut by the cap
    |(?P<url>    \bhttps?://\S+ )
    |(?P<latex>  \\[A-Za-z]{{2,}} )                         # \n and \t are escapes, not commands
    |(?P<number> \p{{Nd}}(?:[\p{{Nd}}.,]*\p{{Nd}})?(?:(?:st|nd|rd|th)(?!\p{{L}}))? )
    |(?P<run>    {_UNSPACED}(?:{_UNSPACED}|\p{{M}})* )
    |(?P<word>   {_LETTER}{_MORE}*(?:['’]{_MORE}+)* )
    """,
    regex.VERBOSE | regex.DOTALL | regex.V1,
)


def words(text: str) -> Iterator[str]:
    """The words of decoded text, lower-cased in Unicode's NFKC form, special tokens left out.

    English possessives lose their 's. Single letters are left out: they are variables, choices, or stop words. Scripts
    without spaces give pairs of characters.
    """
    for match in _PIECE.finditer(unicodedata.normalize("NFKC", plain_text(text))):
        kind, piece = match.lastgroup, match.group()
        if kind == "latex":
            yield piece
        elif kind == "run":
            yield from _pairs(piece)
        elif kind == "word":
            word = piece.lower().replace("’", "'").removesuffix("'s")
            if len(word) > 1:
                yield word
        else:
            yield f"[{kind}]"


def _pairs(run: str) -> list[str]:
    """Overlapping pairs of characters with their marks; a single one is itself."""
    characters = regex.findall(r"\X", run)
    return [a + b for a, b in pairwise(characters)] or characters
