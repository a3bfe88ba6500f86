"""Bearer tokens in files: what callers of a web service send us, and what we send to a broker."""

from __future__ import annotations

from pathlib import Path

from .errors import BadInput


def read_token(path: str | Path, key: str = "auth_token_file") -> str:
    """Return the bearer token in a file that configuration key `key` names.

    Raises BadInput, without the token, when there is none to use.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is no text"
        raise BadInput(
            f"the token file {str(path)!r} cannot be read: {said}; make it readable, or give another {key}="
        ) from None
    return checked_token(text, f"the token file {str(path)!r}")


def checked_token(text: str, source: str) -> str:
    """Return a token as it must be sent. Raises BadInput when it could not be sent in a header."""
    token = text.strip()
    if not token:
        raise BadInput(f"{source} is empty; put the token in it")
    if not all("!" <= character <= "~" for character in token):
        raise BadInput(f"{source} holds spaces or characters beyond ASCII, which no header can carry")
    return token
