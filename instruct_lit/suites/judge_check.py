"""A check before long work that a package's judge is reachable and accepts the key."""

from __future__ import annotations

import asyncio
import os

from instruct_lit.errors import InstructLitError
from instruct_lit.evaluation.judging.endpoints import OpenAIEndpoint
from instruct_lit.suites.suite import BenchmarkError

OPENAI_URL = "https://api.openai.com/v1"


def check_judge(suite: str, url: str | None, model: str | None) -> None:
    """Ask the endpoint for its models; the packages themselves would try an unreachable one for hours.

    Raises BenchmarkError where it cannot be reached, refuses the key or is no such endpoint, and where the openai
    package is missing.
    """
    key = os.environ.get("OPENAI_API_KEY")
    endpoint = OpenAIEndpoint(url or OPENAI_URL, model or "gpt-4-1106-preview", key, n_retries=1, timeout_s=30.0)

    async def check() -> None:
        async with endpoint:
            await endpoint.check()

    try:
        asyncio.run(check())
    except InstructLitError as error:
        message = str(error).replace("judge.url", "suite.options.judge_url")
        message = message.replace("judge.api_key_env names the variable that holds it", "it is that of OPENAI_API_KEY")
        raise BenchmarkError(f"suite={suite}: {message}") from error
