"""The width of text, without a font at hand."""

#: Sizes of a box's name, of what is said beside it, of the number of repeats; the height of a small line.
TITLE, SMALL, BADGE, LINE = 12.5, 10.5, 12.5, 14.0
#: Widths in em of DejaVu Sans, the widest of the fonts that the drawing asks for, so that text fits in all of them.
_WIDTHS = {
    0.3: "IJijl", 0.35: " \u00a0,./:;\\f|·", 0.4: "!()-[]tᵀ", 0.45: "r", 0.5: "*_`–", 0.55: "?csz", 0.6: "FLPkvxy",
    0.65: "$0123456789ESTYabdeghnopqu{}√σ", 0.7: "ABCKRVXZΔ", 0.75: "HNU", 0.8: "&DGOQ", 0.85: "#+<=>^w~×−→",
}  # fmt: skip
_WIDTH = {letter: width for width, letters in _WIDTHS.items() for letter in letters}
#: Bold letters are wider by this factor.
BOLD = 1.13


def text_width(text: str, size: float, bold: bool = False) -> float:
    """An upper bound of the width of a line of text of `size`, in the same unit."""
    return sum(_WIDTH.get(letter, 1.0) for letter in text) * size * (BOLD if bold else 1.0)


def shortened(text: str, size: float, width: float, bold: bool = False) -> str:
    """The text, cut to `width` with an ellipsis where it is wider."""
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text + "…"


def wrapped(text: str, size: float, width: float) -> list[str]:
    """The text in lines of at most `width`, broken at spaces; a longer word is cut."""
    lines: list[str] = []
    for word in text.split(" "):  # a number stays with its unit
        while text_width(word, size) > width:
            cut = max(1, next(n for n in range(len(word), 0, -1) if n == 1 or text_width(word[:n], size) <= width))
            lines.append(word[:cut])
            word = word[cut:]
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= width:
            lines[-1] = joined
        elif word:
            lines.append(word)
    return lines
