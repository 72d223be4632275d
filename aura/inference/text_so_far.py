"""Token ids as they are decoded -> pieces of text that are never taken back."""

from __future__ import annotations

from aura.student.processor import AuraProcessor


class TextSoFar:
    """An answer that is being written; joined, what `add` and `flush` return is the whole text, stripped.

    Args:
        processor: of the model that writes.
    """

    def __init__(self, processor: AuraProcessor) -> None:
        self._tokenizer = processor.tokenizer
        self.ids: list[int] = []
        self.whole = ""  # stripped
        self._said = ""  # what `add` and `flush` returned

    def add(self, token: int) -> str:
        """The text that this token completes; empty in the middle of a character or at a trailing space."""
        self.ids.append(token)
        self.whole = str(self._tokenizer.decode(self.ids, skip_special_tokens=True)).strip()
        return "" if self.whole.endswith("\N{REPLACEMENT CHARACTER}") else self.flush()

    def flush(self) -> str:
        """What has not been said yet."""
        if not self.whole.startswith(self._said):  # a decoder that rewrites: wait until it agrees again
            return ""
        piece, self._said = self.whole[len(self._said) :], self.whole
        return piece
