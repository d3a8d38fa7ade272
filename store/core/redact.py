"""How a lake's address may be told: no message, log or record ever holds what could open a bucket."""

import os
import re

CHAIN = re.compile(r"(::)(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)  # fsspec's way to name a URL inside another
URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCESS_KEY|API_KEY")
WITH_PORT = ("http", "https", "ftp", "sftp", "ssh", "hdfs", "webhdfs", "smb")
SHORTEST = 8  # characters below which a variable's value is a word such as "false", and no secret


def redacted(url: object) -> str:
    """A path or URL without user, password, query string and fragment, for messages and records.

    A path without a scheme and a file:// URL stay as they are. A password may hold '/', as the keys of S3 do; the '@' of
    a revision (hf://datasets/NAME@REVISION) is none of a user's.
    """
    return "".join(_shown(part) for part in CHAIN.split(str(url)))


def _shown(url: str) -> str:
    scheme, slashes, rest = url.partition("://")
    if not slashes or scheme.lower() == "file":
        return url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, colon, after = authority.partition(":")
    port = after.isdigit() and scheme.lower() in WITH_PORT  # the secret of an S3 key may begin with digits and a '/'
    password = bool(colon) and not user.startswith("[") and not port
    if "@" in authority or password:
        _, _, tail = rest.partition("@")
        address = re.split(r"[?#]", tail, maxsplit=1)[0]
        # Behind a password the last '@' counts: a password that was not percent-encoded may hold some itself.
        rest = address.rpartition("@")[2] if password else address
    return scheme + slashes + re.split(r"[?#]", rest, maxsplit=1)[0]


def scrubbed(text: str) -> str:
    """A foreign error's text with its URLs as `redacted` tells them and the values of secret environment variables as ***."""
    for name, value in os.environ.items():
        if SECRET.search(name.upper()) and len(value) >= SHORTEST:
            text = text.replace(value, "***")
    return URL.sub(lambda found: redacted(found[0]), text)
