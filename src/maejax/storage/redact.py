"""Removal of secrets from addresses and commands, for messages, logs and files."""

import os
import re
from functools import cache

_SECRET = r"[\w.-]*(?:token|secret|password|passwd|signature|credential|api[_-]?key|access[_-]?key|auth)[\w.-]*"
_SIGNED = r"sig|key|x-(?:amz|goog)-[\w-]+|expires|policy|key-pair-id|se|st"
_HEADER = r"(?:authorization|proxy-authorization|cookie|x-[\w-]*(?:token|key)|private-token|api-key)"
_OPTION = r"-u|--user|--proxy-user|--oauth2-bearer|--password|--token|--header"
_QUOTED = r"'[^']*'|\"[^\"]*\""
_TOKEN = r"hf_\w{8,}|gh[a-z]_\w{8,}|github_pat_\w+|ya29\.[\w-]+|(?:AKIA|ASIA)[A-Z0-9]{12,}|eyJ[\w-]+\.[\w.-]+"
_RULES = (
    # user:password@host
    (re.compile(r"(://)[^/\s'\"@]+@"), r"\1***@"),
    # Headers: in quotes up to their end, without them up to a space that is not escaped.
    (re.compile(rf"""(['"]{_HEADER}\s*:\s*)[^'"\n]*""", re.I), r"\1***"),
    (re.compile(rf"""((?<!['"\w-]){_HEADER}:)(?!\s*\*\*\*)(?:\\.|[^'"\s\\])+""", re.I), r"\1***"),
    (re.compile(r"\b(bearer|basic)\s+[^\s'\"]+", re.I), r"\1 ***"),
    # Options of commands.
    (re.compile(rf"(?<!\S)({_OPTION})([ =])(?!\S*\*\*\*)(?:{_QUOTED}|\S+)"), r"\1\2***"),
    # Parameters of signed addresses, also those that only change with each signature.
    (re.compile(rf"([?&;])({_SECRET}|{_SIGNED})=[^&\s'\"#]*", re.I), r"\1\2=***"),
    # Assignments before a command: TOKEN=... curl
    (re.compile(rf"(?<![\w?&;])({_SECRET})=(?!\*\*\*)(?:{_QUOTED}|[^\s'\"]+)", re.I), r"\1=***"),
    # Tokens known by their shape: Hugging Face, GitHub, Google, AWS, JSON web tokens.
    (re.compile(rf"\b(?:{_TOKEN})"), "***"),
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)


@cache
def _is_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """Replace secrets by `***`: passwords, headers, signatures, tokens, values of secret environment variables.

    The result still tells a reader which file is meant. It is the same for every signature of an address, and
    redacting it again changes nothing.
    """
    # Names first: to read all values takes most of the time where there are ten thousand addresses.
    for name in filter(_is_secret, os.environ):
        value = os.environ.get(name, "")
        if len(value) >= 8 and "/" not in value[:1]:  # a path to a token is no secret
            text = text.replace(value, "***")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
