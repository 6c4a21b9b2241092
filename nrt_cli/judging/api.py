"""Models behind an OpenAI-compatible endpoint: a conversation in, a reply out. The only importer of `openai`.

Where it is and the key to it come from the environment, OPENAI_BASE_URL and OPENAI_API_KEY, and go nowhere else: they
are taken out of whatever the endpoint says, its errors included.
"""

import asyncio
import contextlib
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nrt_cli.errors import ConfigError, EndpointError

BASE_URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
LONGEST_WAIT = 120.0
"""Seconds of a Retry-After that are waited for, as the `openai` package does. One that asks for more ends the work."""

_REFUSED = re.compile(
    r"unsupported|(?:not|n't) supported?|unrecogni[sz]ed|unknown|unexpected|not (?:permitted|allowed)|deprecated|"
    r"invalid (?:parameter|argument)|use max_completion_tokens|only \S+ is allowed|may only be",
    re.IGNORECASE,
)
"""How endpoints say that they do not take a parameter, unlike its value."""


@dataclass(frozen=True)
class ModelReply:
    """What a model said, and how many tokens the endpoint counts for that; NaN where it does not say.

    `temperature` is what was asked for; None where the model chose.
    """

    text: str
    input_tokens: float
    output_tokens: float
    cut: bool
    temperature: float | None


class Endpoint:
    """A client with retries: `async with Endpoint(timeout, retries) as endpoint`, then `ask`, any number at a time.

    What the endpoint could not serve (429, 408, 409, 5xx, no reply) is tried again with exponential back-off, or after
    its Retry-After; a 429 holds back all requests, not only the one it was for. A model that refuses `max_tokens` gets
    `max_completion_tokens`, one that refuses a temperature gets none, and neither is asked for it again.

    Raises ConfigError where the environment or the package is missing.
    """

    def __init__(self, timeout: float, retries: int) -> None:
        # Neither has a default: traces and money go only where somebody said.
        url, key = (os.environ.get(name, "").strip() for name in (BASE_URL, KEY))
        if not url:
            raise ConfigError(f"set {BASE_URL} to the judge's endpoint, such as https://api.x.ai/v1.")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{BASE_URL} must begin with http:// or https://.")
        if not key:
            raise ConfigError(f"set {KEY} to the key of the judge's endpoint; a local server takes any.")
        try:
            import openai
        except ImportError:
            raise ConfigError("asking a judge needs the openai package: pip install 'nrt-cli[judge]'.") from None
        self._timeout, self._resume_at = timeout, 0.0
        self._refused: defaultdict[str, set[str]] = defaultdict(set)
        # What is shorter is a stand-in, such as `none` for a local server.
        self._secrets = [secret for secret in (key, url) if len(secret) >= 8]
        self._openai = openai
        http_library: Any = sys.modules[openai.DefaultAsyncHttpxClient.__mro__[1].__module__]  # httpx, or httpx2
        hold, heed = self._hold, self._heed

        class Client(openai.DefaultAsyncHttpxClient):
            async def send(self, request: Any, **how: Any) -> Any:
                await hold()
                try:
                    # The library's own limits are for each byte: a server that drips them would hold us for hours.
                    async with asyncio.timeout(timeout):
                        response = await super().send(request, **how)
                except TimeoutError:
                    raise http_library.ReadTimeout("the reply takes too long", request=request) from None
                heed(response)
                return response

        # The key goes to the address that was given, whatever that says.
        http = Client(timeout=timeout, follow_redirects=False)
        self._client = openai.AsyncOpenAI(
            api_key=key, base_url=url, timeout=timeout, max_retries=retries, http_client=http
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(
        self, model: str, messages: Sequence[dict[str, str]], temperature: float | None, max_tokens: int
    ) -> ModelReply:
        """One reply. Raises EndpointError, whose `fatal` says whether other requests would fare alike."""
        openai, refused = self._openai, self._refused[model]
        cap = "max_completion_tokens" if "max_tokens" in refused else "max_tokens"
        asked: Any = {"model": model, "messages": list(messages), cap: max_tokens}
        if temperature is not None and "temperature" not in refused:
            asked["temperature"] = temperature
        try:
            completion = await self._client.chat.completions.create(**asked)
            choice, usage = completion.choices[0], getattr(completion, "usage", None)
            counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
            sent, replied = (count if isinstance(count, int) and count >= 0 else math.nan for count in counts)
            return ModelReply(
                text=self._clean(choice.message.content or ""),
                input_tokens=sent,
                output_tokens=replied,
                cut=choice.finish_reason == "length",
                temperature=asked.get("temperature"),
            )
        except openai.APITimeoutError:
            raise EndpointError(f"no reply within {self._timeout:g} s") from None
        except openai.APIConnectionError:
            raise EndpointError(f"{BASE_URL} cannot be reached, or breaks off its replies") from None
        except openai.APIStatusError as error:
            said = str(error.message)
            if error.status_code in (400, 422) and _REFUSED.search(said):
                named = f"{getattr(error, 'param', None)} {said}".replace("max_completion_tokens", "max_tokens")
                for name in ("max_tokens", "temperature"):  # what can be done without, or said otherwise
                    if name in asked and re.search(rf"\b{name}\b", named):
                        # Others may have been refused it meanwhile; each has two to lose, so this ends.
                        refused.add(name)
                        return await self.ask(model, messages, temperature, max_tokens)
            status = error.status_code
            short = self._clean(said).removeprefix(f"Error code: {status} - ")[:300]
            key_refused = f"{BASE_URL} refuses the key in {KEY} ({status}); set the right one"
            fatal = {
                401: key_refused,
                403: key_refused,
                404: f"{BASE_URL} knows no model {model!r}, or is no /v1 address (404): {short}",
                429: f"the endpoint still limits the rate (429); go on later: {short}",
            }.get(status)
            if 300 <= status < 400:
                fatal = f"{BASE_URL} sends requests on to another address ({status}); set it to where it is served"
            raise EndpointError(fatal or f"status {status}: {short}", fatal=fatal is not None) from None
        except (ValueError, TypeError, AttributeError, LookupError):
            raise EndpointError("the reply is not one of an OpenAI-compatible endpoint") from None

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _heed(self, response: Any) -> None:
        """Note until when a rate limit holds."""
        if response.status_code == 429:
            with contextlib.suppress(KeyError, ValueError):
                seconds = float(response.headers["retry-after"])
                if 0 < seconds <= LONGEST_WAIT:
                    self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + seconds)

    async def _hold(self) -> None:
        while (left := self._resume_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)
