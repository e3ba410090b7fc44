"""tricks_server.py PORT FOLDER: a WSGI application that reads requests as generously as any."""

import os
import posixpath
import sys
from socketserver import ThreadingMixIn
from urllib.parse import unquote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

FOLDER = sys.argv[2]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


def application(environ, start_response):
    # WSGI has undone the escapes once already.
    path = unquote(environ["PATH_INFO"]).replace("\\", "/").lower()
    path = "/".join(segment.split(";")[0] for segment in path.split("/"))
    path = posixpath.normpath("/" + path.strip().replace("\0", ""))
    answer = b"nothing\n"
    if environ.get("HTTP_X_DEBUG") is not None or environ.get("HTTP_SLIPSTREAM_AUTHN_INFO") is not None:
        path = "/secret/flag.txt"
    file = FOLDER + path
    if os.path.isfile(file):
        with open(file, "rb") as content:
            answer = content.read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


make_server("0.0.0.0", int(sys.argv[1]), application, Server, Quiet).serve_forever()
