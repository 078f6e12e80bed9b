"""Whether a text mentions an answer, without regard to case and punctuation."""


def normalize(text: str) -> str:
    """Lower case, letters and digits only, words separated by single spaces."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def mentions(text: str, answer: str) -> bool:
    """Whether `text` contains `answer` as whole words, ignoring case."""
    return f" {normalize(answer)} " in f" {normalize(text)} "
