"""What drivers over HTTP have in common: which failures pass, and that no key is told."""

from typing import TYPE_CHECKING

from forebay_engine.autoscale.drivers import DriverError

if TYPE_CHECKING:
    import httpx

_PASSING = frozenset({408, 409, 425, 429})
"""Of the client's errors, those that are over another time."""


async def send(
    http: "httpx.AsyncClient", method: str, url: str, body: object, headers: dict[str, str]
) -> "httpx.Response":
    """Send JSON, or nothing for None.

    Raises: DriverError for no answer and for every answer but 2xx.
    """
    import httpx
    import msgspec

    content = None if body is None else msgspec.json.encode(body)
    if content is not None:
        headers = {"content-type": "application/json", **headers}
    try:
        answer = await http.request(method, url, content=content, headers=headers)
    except httpx.HTTPError as error:
        raise DriverError(f"{method} {url}: {type(error).__name__}") from None
    if not answer.is_success:
        passes = answer.status_code >= 500 or answer.status_code in _PASSING
        said = answer.text[:200].replace("\n", " ")
        raise DriverError(f"{method} {url}: {answer.status_code} {said}", transient=passes)
    return answer
