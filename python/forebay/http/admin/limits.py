"""Operations on the limits of accounts, of models, and of keys on single models."""

from forebay.http.admin.operation import Call
from forebay.store.errors import BadValue
from forebay.store.limits import Limits, LimitStore, Subject


def _subject(path: dict[str, str]) -> Subject:
    if "account" in path:
        return Subject("account", path["account"])
    if "key_id" in path:
        return Subject("key_model", path["key_id"], path["model"])
    return Subject("model", path["model"])


async def get_limits(call: Call) -> Limits:
    """All null where there are none."""
    return await LimitStore(call.database).get(_subject(call.path))


async def put_limits(call: Call) -> Limits:
    """Sets all of them: a field that is not given is no limit."""
    body: Limits = call.body
    own = call.aliased(call.path["model"]) if "model" in call.path else None
    if own is not None:
        raise BadValue("model", f"is an alias; limits hold under the model's own name, {own}")
    return await LimitStore(call.database).put(_subject(call.path), body)


async def delete_limits(call: Call) -> None:
    """Takes all of them away."""
    await LimitStore(call.database).put(_subject(call.path), Limits())
