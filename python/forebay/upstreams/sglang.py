"""SGLang (0.5.23): https://github.com/sgl-project/sglang.

A hang-up stops a running stream in 0.1 s, but a unary or a queued request only at a 4 s poll, so
those are stopped by ``/abort_request``. ``/health`` costs a second and a token; ``/ready`` only
reads a flag. Errors are flat objects that quote the client's input and the server's file paths.
"""

from forebay.upstreams.kind import Kind, Probe

KIND = Kind(
    name="sglang",
    continuous_usage=True,
    rid=True,
    abort_path="/abort_request",
    continues=True,
    cold=True,
    probe=Probe(
        ready="/ready",
        loading=frozenset({503}),
        models="/v1/models",
        loads="/v1/loads?include=core",
        info="/model_info",
    ),
)
