"""An engine that waits before its weights, as SGLang with `--gated-launch-port`, then simulates.

`gated_engine.py GATE_PORT PORT`: says what SGLang says, lets itself be let on by `POST
/gate/activate`, and becomes the simulator.
"""

import http.server
import os
import sys
import time


class Gate(http.server.BaseHTTPRequestHandler):
    """Open once asked."""

    opened = False

    def do_POST(self) -> None:
        type(self).opened = self.path == "/gate/activate"
        body = b"OK" if type(self).opened else b"Not Found"
        self.send_response(200 if type(self).opened else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


if __name__ == "__main__":
    print("server_args=ServerArgs(model_path='tiny')", flush=True)
    print("Gated launch waiting for activation. rank=0", flush=True)
    # SGLang's server for it is a thread, which may come to listen after that.
    time.sleep(0.3)
    server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Gate)
    while not Gate.opened:
        server.handle_request()
    server.server_close()
    print("Load weight begin. avail mem=70.00 GB", flush=True)
    print("Load weight end. elapsed=0.10 s", flush=True)
    argv = [sys.executable, "-m", "forebay_engine", "sim", "--port", sys.argv[2]]
    os.execv(sys.executable, argv)
