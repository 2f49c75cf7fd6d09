"""The audit log names the key that the core has let in, whatever else a request says."""

import pytest
from forebay.http.admin.caller import holder
from forebay.store.key_format import generate

MINE, OTHER = generate("admin"), generate("admin")
A, B = MINE.key.encode(), OTHER.key.encode()


@pytest.mark.parametrize(
    ("authorization", "api_key", "named"),
    [
        (b"Bearer " + A, None, MINE.id),
        (b"bEaReR   " + A + b" ", b" " + B, MINE.id),
        (None, b" " + A + b" ", MINE.id),
        # No bearer token: the core takes the other header's key.
        (b"Basic\t\t" + B, A, MINE.id),
        (b"bearer:" + B, A, MINE.id),
        (b"1234567" + B, A, MINE.id),
        (b"", A, MINE.id),
        # One that is empty is still the one that counts.
        (b"Bearer ", A, "unknown"),
        (b"1234567" + B, None, "unknown"),
    ],
)
def test_the_key_that_counts(
    authorization: bytes | None, api_key: bytes | None, named: str
) -> None:
    given = ((b"authorization", authorization), (b"x-api-key", api_key))
    headers = [(name, value) for name, value in given if value is not None]
    assert holder(headers) == f"key:{named}"
