"""A counter on the web, kept in redis.

`app.py serve` answers on port PORT: `GET /` counts (JSON if that is what is asked for, else HTML), `GET /healthz` says
whether redis answers. `app.py init` writes the first value (COUNTER_START) unless there is one, and ends.
Settings from the environment: PORT, REDIS_HOST, REDIS_PORT, COUNTER_START, INIT_FILE (also written by `init`).
"""

import json
import os
import signal
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "counter"
REDIS = (os.environ.get("REDIS_HOST", "redis"), int(os.environ.get("REDIS_PORT", "6379")))
PORT = int(os.environ.get("PORT", "8000"))
INIT_SECONDS = 30


def redis(*words):
    """One command in redis' protocol; returns the answer as text, or None for nil."""
    request = b"*%d\r\n" % len(words)
    for word in map(str.encode, words):
        request += b"$%d\r\n%s\r\n" % (len(word), word)
    with socket.create_connection(REDIS, timeout=2) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answers:
            line = answers.readline().decode().rstrip("\r\n")
            if line.startswith("$"):
                length = int(line[1:])
                return None if length < 0 else answers.read(length).decode()
    if not line or line.startswith("-"):
        raise OSError(f"redis: {line[1:] or 'connection closed'}")
    return line[1:]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path not in ("/", "/healthz"):
            return self.answer(404, "text/plain", "not found\n")
        try:
            if self.path == "/healthz":
                redis("PING")
                return self.answer(200, "text/plain", "ok\n")
            count = int(redis("INCR", KEY))
        except OSError as error:
            return self.answer(503, "text/plain", f"no redis at {REDIS[0]}:{REDIS[1]}: {error}\n")
        if "application/json" in self.headers.get("Accept", ""):
            body = {"count": count, "hostname": socket.gethostname()}
            return self.answer(200, "application/json", json.dumps(body) + "\n")
        return self.answer(200, "text/html", f"<!doctype html><title>counter</title><p>count: {count}</p>\n")

    def answer(self, status, kind, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve():
    # the first process of a container ends on a signal only if it says so
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"listening on port {PORT}", flush=True)
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()


def init():
    start = os.environ.get("COUNTER_START", "0")
    deadline = time.monotonic() + INIT_SECONDS
    while True:
        try:
            redis("SETNX", KEY, start)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"no redis at {REDIS[0]}:{REDIS[1]} for {INIT_SECONDS} s: {error}")
            time.sleep(0.2)
    value = redis("GET", KEY)
    if path := os.environ.get("INIT_FILE"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{value}\n")
    print(f"{KEY} is {value}", flush=True)


if __name__ == "__main__":
    modes = {"serve": serve, "init": init}
    mode = sys.argv[1] if len(sys.argv) > 1 else "serve"
    if mode not in modes:
        sys.exit(f"{mode}: unknown mode, one of {', '.join(modes)}")
    modes[mode]()
