"""SGLang (0.5.23): https://github.com/sgl-project/sglang.

Address ``http://HOST:30000``, bearer key with ``--api-key``. The port is closed while weights load;
then ``/ready`` is 503 for about a second more (tests/data/sglang-0.5.23). ``/health`` costs a
second and a token; ``/ready`` only reads a flag. ``/v1/loads`` says how much it has to do, some
steps late.

Errors are flat objects (``{"object": "error", "message", "type", "param", "code"}``) that quote the
client's input and the server's file paths. 503: its queue is full. A stream may fail after its 200
by an event ``{"error": …}`` and end in ``[DONE]`` all the same; an abort is a finish reason.

Usage comes with ``include_usage``; ``continuous_usage_stats`` puts it on each chunk, so that an
interrupted answer is counted by the engine. A hang-up stops a running stream in 0.1 s, but a unary
or a queued request only at a 4 s poll, so those are stopped by ``/abort_request``.

Sources: srt/entrypoints/http_server.py, srt/entrypoints/openai/serving_chat.py and serving_base.py
at that version; the recordings.
"""

from forebay.upstreams.kind import Kind, Paths, Probe

KIND = Kind(
    name="sglang",
    continuous_usage=True,
    rid=True,
    abort_path="/abort_request",
    continues=True,
    cold=True,
    default_paths=Paths(count_tokens="/v1/messages/count_tokens", responses="/v1/responses").having(
        "rerank", "score", "transcriptions"
    ),
    probe=Probe(
        ready="/ready",
        loading=frozenset({503}),
        models="/v1/models",
        loads="/v1/loads?include=core",
        info="/model_info",
    ),
)
