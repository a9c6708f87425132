"""A small HTTP server on this machine that answers as the Hugging Face hub does, well-mannered or not."""

import hashlib
import http.server
import re
import threading
import time

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = re.compile(r"/(timm/[^/]+)/resolve/([^/]+)/model\.safetensors")
LOGIN_PAGE = b"<html><body>Log in to use this network.</body></html>"
ERRORS = {"no repository": (404, "RepoNotFound"), "no revision": (404, "RevisionNotFound")}
ERRORS.update({"gated": (401, "GatedRepo"), "broken": (500, None), "no file": (404, "EntryNotFound")})


class HubServer(http.server.ThreadingHTTPServer):
    """One file for every repository.

    Attributes:
        content: the file's bytes.
        manner: what it does wrong: a key of ERRORS, or one of those in Handler; None is well-mannered.
        requests: (method, path, Range header or None) of all requests.
    """

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.manner = None
        self.requests = []
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.shutdown()
        self.server_close()

    def asked(self):
        """The paths of the requests for repositories' files; the client asks for other things, too."""
        return [path for _, path, _ in self.requests if "/resolve/" in path]

    def downloads(self):
        """The Range headers of the requests that ask for the file itself."""
        return [asked for method, path, asked in self.requests if method == "GET" and path.startswith("/cdn/")]


class Handler(http.server.BaseHTTPRequestHandler):
    """The hub sends a file's commit, size and digest with a redirection to a host of its content network."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, manner = self.server, self.server.manner
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if manner in ERRORS:
            status, code = ERRORS[manner]
            return self.answer(status, {"X-Error-Code": code} if code else {})
        if manner == "login page":
            return self.answer(200, {"Content-Type": "text/html"}, LOGIN_PAGE)
        if manner == "silent":
            hub.ended.wait(60)
            return None
        if self.path.startswith("/cdn/"):
            return self.send_content(manner)
        match = FILE.fullmatch(self.path)
        if not match or match[2] not in ("main", COMMIT):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound" if match else "RepoNotFound"})
        digest = hashlib.sha256(hub.content).hexdigest()
        headers = {
            # Another name of this machine: the content network is another host.
            "Location": f"{hub.url.replace('127.0.0.1', 'localhost')}/cdn/{digest}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(hub.content)),
            "ETag": '"of the pointer"',
        }
        return self.answer(302, headers)

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_content(self, manner):
        content = self.server.content
        if manner == "wrong file":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if manner == "page for a file":
            return self.answer(200, {"Content-Type": "text/html"}, LOGIN_PAGE)
        if manner == "broken content network":
            return self.answer(500, {})
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        # The client keeps what came in pieces of 10 MiB.
        end = {"cut once": 0 if asked else 11 << 20, "always cut": first, "stalled": 1000}.get(manner)
        piece = 1 << 17 if manner == "trickle" else len(content)
        last = end if end == first else end or len(content)
        for start in range(first, last, piece):
            self.wfile.write(content[start : min(start + piece, last)])
            time.sleep(0.004 if manner == "trickle" else 0)
        if manner == "slow":
            time.sleep(1)
        if manner == "stalled":
            self.wfile.flush()
            self.server.ended.wait(60)
        if end is not None:
            self.close_connection = True
        return None
