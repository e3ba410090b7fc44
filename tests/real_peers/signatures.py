"""Signs and verifies raw HTTP/1.1 messages with the PyPI package http-message-signatures.

    signatures.py sign   ALGORITHM KEY MESSAGE [REQUEST] -- KEYID TAG COMPONENT...
    signatures.py verify ALGORITHM KEY MESSAGE [REQUEST] -- TAG COMPONENT...

`sign` prints the signed message, `verify` what the signature covers. MESSAGE is a file; a response names its request.
"""

import base64
import http.client
import io
import sys

from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, algorithms
from http_message_signatures.resolvers import MappingKeyResolver

ALGORITHMS = {
    "ecdsa-p256-sha256": algorithms.ECDSA_P256_SHA256,
    "ecdsa-p384-sha384": algorithms.ECDSA_P384_SHA384,
    "ed25519": algorithms.ED25519,
    "hmac-sha256": algorithms.HMAC_SHA256,
    "rsa-pss-sha512": algorithms.RSA_PSS_SHA512,
    "rsa-v1_5-sha256": algorithms.RSA_V1_5_SHA256,
}


class Message:
    """What the package wants to know of a message: a response is one with a status code."""

    def __init__(self, path, request=None):
        with open(path, "rb") as file:
            head, self.body = file.read().split(b"\r\n\r\n", 1)
        self.start, _, fields = head.partition(b"\r\n")
        self.headers = http.client.parse_headers(io.BytesIO(fields + b"\r\n\r\n"))
        first, second, _ = self.start.decode().split(" ", 2)
        if first.startswith("HTTP/"):
            self.status_code, self.request = int(second), request
        else:
            self.method, self.url = first, f"http://{self.headers['Host']}{second}"

    def to_bytes(self):
        fields = [f"{name}: {value}".encode("latin-1") for name, value in self.headers.items()]
        return b"\r\n".join([self.start, *fields, b"", self.body])


class AnyKeyId(MappingKeyResolver):
    """One key, whatever it is called."""

    def __init__(self, key):
        super().__init__(public_keys={}, private_keys={})
        self.key = key

    def resolve_public_key(self, key_id):
        return self.key

    def resolve_private_key(self, key_id):
        return self.key


def main(arguments):
    end = arguments.index("--")
    verb, algorithm, key_path, *paths = arguments[:end]
    rest = arguments[end + 1 :]
    message = None
    for path in reversed(paths):
        message = Message(path, message)
    with open(key_path, "rb") as file:
        key = file.read()
    if algorithm == "hmac-sha256":
        key = base64.b64decode(key)
    settings = {"signature_algorithm": ALGORITHMS[algorithm], "key_resolver": AnyKeyId(key)}
    if verb == "sign":
        key_id, tag, *components = rest
        signer = HTTPMessageSigner(**settings)
        signer.sign(message, key_id=key_id, tag=tag, covered_component_ids=components, body=message.body)
        sys.stdout.buffer.write(message.to_bytes())
    else:
        tag, *components = rest
        verifier = HTTPMessageVerifier(**settings)
        [result] = verifier.verify(message, expect_tag=tag, require_components=components, body=message.body)
        for name, value in result.covered_components.items():
            print(f"{name}: {value}")


main(sys.argv[1:])
