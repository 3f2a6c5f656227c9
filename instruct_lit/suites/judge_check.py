"""A check before long work that a package's judge is reachable and accepts the key."""

import os

from instruct_lit.errors import InstructLitError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.judging.endpoints import OpenAIEndpoint
from instruct_lit.evaluation.judging.judge import Judge
from instruct_lit.suites.suite import BenchmarkError

OPENAI_URL = "https://api.openai.com/v1"


def check_judge(suite: str, url: str | None, model: str | None) -> None:
    """Raise BenchmarkError for a judge that cannot be used; the packages would retry for hours."""
    key = os.environ.get("OPENAI_API_KEY")
    try:
        endpoint = OpenAIEndpoint(url or OPENAI_URL, model or "gpt-4-1106-preview", key, n_retries=1, timeout_s=30.0)
        Judge(endpoint, AnswerCache(None)).check()
    except InstructLitError as error:
        message = str(error).replace("judge.url", "suite.options.judge_url")
        message = message.replace("judge.api_key_env names the variable that holds it", "it is that of OPENAI_API_KEY")
        raise BenchmarkError(f"suite={suite}: {message}") from error
