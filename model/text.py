"""Text for terminals."""


def printable(text: str) -> str:
    """`text` on one line: line breaks and control characters are escaped, as in file names that hold them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
