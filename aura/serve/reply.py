"""One answer on the realtime socket, as the events that OpenAI's clients wait for."""

from __future__ import annotations

import uuid
from typing import Any

from aura.serve.conversation import Entry
from aura.serve.failures import ApiError
from aura.serve.jobs import Completion, Piece


class Reply:
    """Sends an answer's events and, where it is to be kept, adds it to the conversation.

    Args:
        session: whose answer it is.
        id: of the response.
        keep: part of the conversation from now on.
        metadata: the client's own, given back.
    """

    def __init__(self, session: Any, *, id: str, keep: bool, metadata: dict[str, str] | None) -> None:
        self.session = session
        self.id = id
        self.item_id = f"item_{uuid.uuid4().hex[:24]}"
        self.keep = keep
        self.metadata = metadata
        self.text = ""
        self.finished = False
        self.usage: dict[str, Any] | None = None
        self._over = False

    async def begin(self) -> None:
        """The answer is on its way."""
        await self.session.send("response.created", response=self._response("in_progress"))
        await self.session.send("response.output_item.added", **self._place(), item=self._item("in_progress"))
        await self.session.send(
            "conversation.item.added",
            previous_item_id=self.session.conversation.last_id,
            item=self._item("in_progress"),
        )
        await self.session.send("response.content_part.added", **self._part(), part={"type": "text", "text": ""})

    async def take(self, event: Piece | Completion) -> None:
        """Some more text, or the end."""
        if isinstance(event, Piece):
            self.text += event.text
            return await self.session.send("response.output_text.delta", **self._part(), delta=event.text)
        self.finished = event.finished
        self.session.service.metrics.answered(self.session.served.name, event)
        self.usage = {
            "total_tokens": event.prompt_tokens + event.completion_tokens,
            "input_tokens": event.prompt_tokens,
            "output_tokens": event.completion_tokens,
            "input_token_details": {
                "audio_tokens": event.audio_tokens,
                "text_tokens": event.prompt_tokens - event.audio_tokens,
                "cached_tokens": 0,
            },
            "output_token_details": {"text_tokens": event.completion_tokens, "audio_tokens": 0},
        }

    async def end(self, status: str, error: ApiError | None = None) -> None:
        """Close it: `completed`, `incomplete` (its length ran out), `cancelled` or `failed`."""
        if self._over:
            return
        self._over = True
        send = self.session.send
        if error is not None:
            await self.session.fail(error, None)
        await send("response.output_text.done", **self._part(), text=self.text)
        await send("response.content_part.done", **self._part(), part={"type": "text", "text": self.text})
        item = self._item("completed" if status == "completed" else "incomplete")
        await send("response.output_item.done", **self._place(), item=item)
        if self.keep and self.text:
            self.session.conversation.entries.append(Entry(id=self.item_id, role="assistant", parts=(self.text,)))
        await send("conversation.item.done", item=item)
        details = {
            "incomplete": {"type": "incomplete", "reason": "max_output_tokens"},
            "cancelled": {"type": "cancelled", "reason": "client_cancelled"},
            "failed": {"type": "failed", "error": error.body() if error else None},
        }
        await send("response.done", response=self._response(status, details.get(status)))

    def _place(self) -> dict[str, Any]:
        return {"response_id": self.id, "output_index": 0}

    def _part(self) -> dict[str, Any]:
        return {**self._place(), "item_id": self.item_id, "content_index": 0}

    def _item(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [{"type": "output_text", "text": self.text}]
        item = {"id": self.item_id, "object": "realtime.item", "type": "message", "status": status}
        return {**item, "role": "assistant", "content": content}

    def _response(self, status: str, details: Any = None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": []
            if status == "in_progress"
            else [self._item("completed" if status == "completed" else "incomplete")],
            "output_modalities": ["text"],
            "metadata": self.metadata,
            "usage": self.usage,
        }
