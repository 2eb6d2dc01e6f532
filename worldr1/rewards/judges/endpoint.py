"""A critic behind any OpenAI-compatible server: the picture and the question of `qwen`, the ten digits read from the
log-probabilities of the answer's first token."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from worldr1.config import RewardConfig
from worldr1.rewards.judges.qwen import SYSTEM, as_bytes, empty_answers, question

KEY = "OPENAI_API_KEY"
"""Environment variable with the bearer token; without it none is sent."""

MAX_CONCURRENT = 8
"""Pictures that are asked about at once; a server puts together what arrives together."""

RETRIED = (429, 502, 503, 504)
"""HTTP statuses that another try may mend."""

_BACKOFF_S = (0.3, 1.0)  # drawn evenly, so that the ranks do not come back together
_DIGITS = tuple("0123456789")
_TOP = 20  # tokens with their probability: what OpenAI allows, and vLLM by default
_MAX_BODY = 1 << 20  # bytes that are read of an answer
_EXCERPT = 200  # characters of it that are quoted
_VARYING = re.compile(r"[\w-]*\d[\w-]*")  # numbers, times and ids, which differ between samples of one trouble

_log = logging.getLogger(__name__)


class EndpointCritic:
    """A Critic that asks a server, one picture a request."""

    role = "critic"

    def __init__(self, address: str, *, model: str = "", timeout: float = RewardConfig().critic_timeout) -> None:
        """Ask the server which models it has.

        Args:
          address: Up to and with the version, as in http://host:8000/v1.
          model: Its name on the server; empty: the only one that is served.
          timeout: Seconds for one answer, its second try included.
        Raises:
          ValueError: no such server, a key that is missing or refused, no such model, or several to choose from.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            # A password in an address would be written into the files of the run.
            raise ValueError(
                f"EndpointCritic: address must be like http://host:8000/v1, without user, password or query, got one "
                f"for {parts.hostname or 'no host'}; a key goes into {KEY}"
            )
        self._key = os.environ.get(KEY, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):  # an HTTP library would quote it in its error
            raise ValueError(f"EndpointCritic: {KEY} must be one word of printable ASCII, got something else")
        self.address = address.rstrip("/")
        self.timeout = timeout
        try:
            served = [entry["id"] for entry in self._ask("GET", "/models")["data"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"EndpointCritic: {self.address}/models must list models, got other JSON") from error
        except NoAnswer as error:
            raise ValueError(
                f"EndpointCritic: reward.critic must be an OpenAI-compatible server, got: {error}; {error.advice}"
            ) from error
        if model not in served if model else len(served) != 1:
            raise ValueError(
                f"EndpointCritic: reward.critic_model must be one of the models at {self.address}, "
                f"{', '.join(map(repr, served)) or 'of which there is none'}, got {model!r}"
            )
        self.model = model or served[0]

    @torch.no_grad()
    def digit_probs(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The probability of each digit as the first token of the answer.

        Of a single picture a failure is raised, so that its reason is that of the sample. Of several, the row of one
        that fails is NaN and the reason goes to the log: raised, it would make the caller reconstruct all of them and
        ask again one by one, which a server in trouble answers least, and a hanging one in N times the timeout.

        Args:
          images: Shape [N, 3, H, W] in [0, 1]; sent as PNG, 8 bits a channel.
          prompts: N texts; quoted and cut as in `qwen.question`.
        Returns:
          [N, 10] float32 on the device of `images`; what lies outside the likeliest tokens that the server names, or
          is no digit, is left out of a row. NaN in the row of a picture that is not finite.
        Raises:
          RuntimeError: N is 1 and there is no answer: no connection, no time, an HTTP error, no log-probabilities, or
            words in place of a digit.
          ValueError: another shape, or prompts and images differ in number.
        """
        probs, rows = empty_answers(images, prompts)
        pictures = as_bytes(images[rows])  # [n, H, W, 3]
        with ThreadPoolExecutor(max_workers=MAX_CONCURRENT) as pool:
            answers = [pool.submit(self._grade, pictures[k], prompts[i]) for k, i in enumerate(rows)]
        reasons: Counter[str] = Counter()
        for i, answer in zip(rows, answers, strict=True):
            try:
                probs[i] = torch.tensor(answer.result())
            except NoAnswer as error:
                if len(prompts) == 1:
                    raise
                reasons[str(error)] += 1
        for reason, count in reasons.items():
            _log.warning("the critic did not answer for %d of %d pictures: %s", count, len(prompts), reason)
        return probs

    def _grade(self, picture: np.ndarray, prompt: str) -> list[float]:
        """Picture [H, W, 3] uint8 -> the probabilities of '0' ... '9'."""
        from PIL import Image

        png = io.BytesIO()
        Image.fromarray(picture).save(png, format="PNG", compress_level=1)  # lossless at any level
        url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode("ascii")
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question(prompt)}]
        answer = self._ask(
            "POST",
            "/chat/completions",
            {
                "model": self.model,
                "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}],
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": True,
                "top_logprobs": _TOP,
            },
        )
        probs = [0.0] * 10
        seen = False
        try:
            for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
                digit, p = entry["token"].strip(), math.exp(entry["logprob"])
                if digit in _DIGITS:
                    probs[int(digit)] += p  # '7' and ' 7' are tokens apart
                    seen = True
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            raise self._failure("no log-probabilities in the answer", body=json.dumps(answer)) from error
        if not seen:
            raise self._failure("words in place of a digit")
        if not sum(probs) <= 1.001:  # NaN too
            raise self._failure("log-probabilities that are none")
        return probs

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer, after a second try where that may help and there is time. NoAnswer without one."""
        deadline = time.monotonic() + self.timeout
        try:
            return self._try(method, path, body, deadline=deadline)
        except NoAnswer as error:
            pause = random.SystemRandom().uniform(*_BACKOFF_S)  # the run's own random numbers are left alone
            if not error.may_pass or time.monotonic() + pause >= deadline:
                raise
        time.sleep(pause)
        return self._try(method, path, body, deadline=deadline)

    def _try(self, method: str, path: str, body: dict[str, Any] | None, *, deadline: float) -> Any:
        import requests
        from urllib3.util import Timeout

        left = max(1e-3, deadline - time.monotonic())
        # A host that is gone swallows connections: give up on one early enough for another.
        timeout: Any = Timeout(connect=left / 3, total=left)  # requests hands it on to urllib3
        try:
            with requests.request(
                method,
                self.address + path,
                json=body,
                auth=self._sign,
                allow_redirects=False,
                stream=True,
                timeout=timeout,
            ) as response:
                # That timeout is for the next bytes; an answer may also come drop by drop.
                watch = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [response.raw])
                watch.start()
                read = bytearray()
                try:
                    for piece in response.iter_content(1 << 16):
                        read += piece
                        if len(read) >= _MAX_BODY:
                            break
                finally:
                    watch.cancel()
        except requests.RequestException as error:
            if isinstance(error, requests.Timeout) or time.monotonic() >= deadline:
                raise self._failure("no answer in time", may_pass=True) from None
            raise self._failure(f"no connection ({type(error).__name__})", may_pass=True) from None
        if time.monotonic() >= deadline:
            raise self._failure("no answer in time")
        text = read.decode("utf-8", errors="replace")
        if response.status_code != 200:
            status = response.status_code
            raise self._failure(f"HTTP {status}", status=status, body=text, may_pass=status in RETRIED)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise self._failure("HTTP 200, but no JSON", body=text) from None

    def _sign(self, request: Any) -> Any:
        # As a callable: of a plain header, requests gives preference to a password in ~/.netrc.
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _failure(self, what: str, *, status: int = 0, body: str = "", may_pass: bool = False) -> NoAnswer:
        if self._key:
            body = body.replace(self._key, "(key)")
        plain = "".join(c if c.isprintable() else " " for c in body[:_EXCERPT])
        quoted = " ".join(_VARYING.sub("#", plain).split())
        return NoAnswer(
            f"{self.address}: {what}" + (f": {quoted}" if quoted else ""),
            advice=_advice(status, has_key=bool(self._key)),
            may_pass=may_pass,
        )


class NoAnswer(RuntimeError):
    """Why a server gave no grade; the same words for the same cause, so that samples can be counted by them."""

    def __init__(self, reason: str, *, advice: str, may_pass: bool) -> None:
        super().__init__(reason)
        self.advice = advice
        self.may_pass = may_pass


def _cut(raw: Any) -> None:
    with contextlib.suppress(ValueError, RuntimeError, OSError):  # read to its end in the meantime
        raw.shutdown()


def _advice(status: int, *, has_key: bool) -> str:
    if status in (401, 403):
        return f"the key in {KEY} was refused" if has_key else f"set {KEY} to the server's key"
    return "start the server first, and give its address up to and with the version, as in http://host:8000/v1"
