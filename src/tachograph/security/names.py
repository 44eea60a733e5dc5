"""Names that secrets stand under."""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SECRET_ENDINGS = tuple(
    _set(
        """
        accesskey accesstoken apikey apitoken authorization authtoken bearertoken credential
        identitytoken passphrase passwd password privatekey refreshtoken secret secretkey
        sessiontoken
        """
    )
)
_SECRET_LAST = _set("auth cookie jwt pwd sshpass")
_KEY_OWNERS = _set(
    """
    access account anthropic api app auth aws azure client cohere comet deploy encryption gcp
    github gitlab google groq hf hmac huggingface kaggle license master mistral neptune openai
    private secret sendgrid service session signing ssh stripe subscription wandb
    """
)
_PASS_OWNERS = _set("admin database db ftp mail mysql pg postgres redis root smtp ssh user")
_HARMLESS_TOKENS = _set(  # the vocabulary of language models: pad_token, max_new_token, …
    """
    audio begin blank bos class cls context current decoder delimiter dist distill encoder end eos
    eot first image input last latent mask max min n new next num oov output pad padding patch per
    prev prompt query register sep separator sot special start stop target text time unk unknown
    video vision visual word
    """
)
_HARMLESS_ENDINGS = _set(
    """
    count dim dir enabled env expires expiry field file folder hidden len length method name
    path policy required scheme size ttl type url var
    """
)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether the value under this name is to be kept secret.

    Parameters
    ----------
    name : str
        A variable, key, flag or dotted path, in any spelling (`api_key`, `--api-key`, `apiKey`).
        Of a path, each component counts: what lies under `secrets` is secret.
    """
    components = name.strip("-").split(".")
    harmless = not _HARMLESS_ENDINGS.isdisjoint(_words(components[-1])[-1:])
    return not harmless and any(map(_is_secret, components))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name[:200])]


def _ends_secret(word: str) -> bool:
    return word.removesuffix("s").endswith(_SECRET_ENDINGS)


def _is_secret(name: str) -> bool:
    words = _words(name)
    if not words or name.upper() in ("PWD", "OLDPWD"):
        return False
    if words[-1] in _SECRET_LAST or any(_ends_secret(word) for word in words):
        return True
    key = words[:-1] if words[-1] in ("id", "data") else words  # AWS_ACCESS_KEY_ID
    if len(key) > 1 and key[-1] in ("key", "keys") and key[-2] in _KEY_OWNERS:
        return True
    owner = words[-2] if len(words) > 1 else ""
    return (
        (words[-1] == "token" and owner not in _HARMLESS_TOKENS)
        or (words[-1] == "tokens" and owner in ("auth", "access", "api"))
        or (words[-1] == "pass" and owner in _PASS_OWNERS)
    )
