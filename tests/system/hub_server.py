"""A hub for the tests: the API of the Hugging Face hub on one port, large files on another, and its troubles."""
import hashlib
import http.server
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

LFS_AT_LEAST = 10_000


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Trouble:
    """What happens to a file's requests; a count goes down with each request that it spoils."""
    statuses: list = field(default_factory=list)  # answered in turn before the file: (status, headers)
    cuts: int = 0  # the connection ends in the middle of what was asked for
    ignores_range: bool = False
    spoils: int = 0  # a byte is wrong
    pause_s: float = 0  # between pieces of 64 KiB
    lies_about_range: int = 0  # 206 from another place than was asked for
    extra: bytes = b""  # sent behind the file


@dataclass
class Request:
    host: str  # "hub" or "store"
    method: str
    path: str
    range: str
    token: str
    sent: int = 0


class Hub:
    """add() gives it models; `requests` records all that was asked."""

    def __init__(self, certificate=None):
        self.models = {}
        self.answers = {}  # name -> (status, headers) in place of the list of files
        self.gated = {}  # name -> the token that opens its files; who has none sees the list
        self.troubles = {}  # path -> Trouble
        self.listing_troubles = Trouble()
        self.edit_listing = lambda listing: listing
        self.requests = []
        self.lock = threading.Lock()
        self.servers = [self._serve("hub", certificate), self._serve("store", certificate)]
        scheme = "https" if certificate else "http"
        self.url, self.store_url = (f"{scheme}://127.0.0.1:{one.server_port}" for one in self.servers)

    def add(self, name, files, commit="1" * 40, revision="main"):
        self.models[name, revision] = self.models[name, commit] = (commit, files)

    def stop(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def transfers(self, path):
        """The requests that were answered with bytes of the file."""
        return [one for one in self.requests if one.path.endswith("/" + path) and one.sent]

    def _serve(self, host, certificate):
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                hub._answer(host, self)

            do_HEAD = do_GET

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                pass  # a client that went away

        server = Server(("127.0.0.1", 0), Handler)
        if certificate:
            import ssl
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def _answer(self, host, handler):
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        request = Request(host, handler.command, path, handler.headers.get("Range", ""),
                          handler.headers.get("Authorization", ""))
        with self.lock:
            self.requests.append(request)
        if path.startswith("/api/models/"):
            return self._list(handler, path.removeprefix("/api/models/"), request)
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        commit, _, file = rest.partition("/")
        data = self.models[name, commit][1].get(file)
        if data is None:
            return reply(handler, 404, {"X-Error-Code": "EntryNotFound"})
        if host == "hub" and request.token != f"Bearer {self.gated.get(name)}" and name in self.gated:
            return reply(handler, 403 if request.token else 401, {"X-Error-Code": "GatedRepo"})
        large = len(data) >= LFS_AT_LEAST
        if host == "hub" and large:
            return reply(handler, 302, {"Location": self.store_url + handler.path,
                                        "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                                        "X-Linked-Size": str(len(data))})
        self._send(handler, request, data, self.troubles.get(file, Trouble()))

    def _list(self, handler, rest, request):
        name, _, revision = rest.partition("/revision/")
        if name in self.answers:
            return reply(handler, *self.answers[name])
        if self.listing_troubles.statuses:
            return reply(handler, *self.listing_troubles.statuses.pop(0))
        if (name, revision) not in self.models:
            return reply(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = self.models[name, revision]
        siblings = []
        for path, data in files.items():
            entry = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
            if len(data) >= LFS_AT_LEAST:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps(self.edit_listing({"id": name, "sha": commit, "siblings": siblings})).encode()
        reply(handler, 200, {"Content-Type": "application/json"}, body)

    def _send(self, handler, request, data, trouble):
        if handler.command == "HEAD":
            return reply(handler, 200, {"ETag": f'"{git_sha1(data)}"', "Content-Length": str(len(data))})
        with self.lock:
            status = trouble.statuses.pop(0) if trouble.statuses else None
            cut, trouble.cuts = trouble.cuts > 0, max(0, trouble.cuts - 1)
            spoil, trouble.spoils = trouble.spoils > 0, max(0, trouble.spoils - 1)
            lie, trouble.lies_about_range = trouble.lies_about_range > 0, max(0, trouble.lies_about_range - 1)
        if status:
            return reply(handler, *status)
        start = 0
        if request.range and not trouble.ignores_range:
            start = int(request.range.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return reply(handler, 416, {"Content-Range": f"bytes */{len(data)}"})
            start += lie
        body = bytearray(data[start:] + trouble.extra)
        if spoil:
            body[len(body) // 2] ^= 1
        handler.send_response(206 if request.range and not trouble.ignores_range else 200)
        handler.send_header("Content-Length", str(len(body)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        if cut:
            body = body[:len(body) // 2]
        for begin in range(0, len(body), 1 << 16):
            piece = body[begin:begin + (1 << 16)]
            request.sent += len(piece)
            handler.wfile.write(piece)
            if trouble.pause_s:
                time.sleep(trouble.pause_s)
        if cut:
            handler.close_connection = True


def reply(handler, status, headers=None, body=b""):
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
