"""A response in pieces, as chats and servers show it."""

from collections.abc import Sequence

from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.serving.scheduler import stable_text


def pieces_of(engine: Engine, prompt: Sequence[int], settings: SamplingSettings) -> list[str]:
    """What each step adds to the text that no later token changes."""
    request, pieces, n_shown = engine.enqueue(engine.prepare(prompt, settings)), [], 0
    while request.finish_reason is None:
        engine.step()
        if text := stable_text(request)[n_shown:]:
            pieces.append(text)
            n_shown += len(text)
    return pieces
