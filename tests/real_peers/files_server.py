"""files_server.py PORT FOLDER: the files of a folder, as `python -m http.server` serves them."""

import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Files(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), functools.partial(Files, directory=sys.argv[2])).serve_forever()
