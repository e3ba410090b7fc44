"""An application with the SPIFFE library for Python: fetches everything, and judges it as others would.

usage: spiffe_client.py SOCKET AUDIENCE FOLDER; prints one JSON object, leaves chain, key and roots in FOLDER.
"""

import json
import ssl
import sys

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import JwtSvid, TrustDomain, WorkloadApiClient

socket, audience, folder = sys.argv[1:]
client = WorkloadApiClient(f"unix://{socket}", default_timeout=60)

context = client.fetch_x509_context()
svid = context.default_svid
trust_domain = TrustDomain(svid.spiffe_id.trust_domain.name)
roots = context.x509_bundle_set.get_bundle_for_trust_domain(trust_domain).x509_authorities


def write(name, *parts):
    path = f"{folder}/{name}"
    with open(path, "wb") as file:
        file.write(b"".join(parts))
    return path


def pem(certificates):
    return [certificate.public_bytes(Encoding.PEM) for certificate in certificates]


leaf = write("leaf.pem", *pem([svid.leaf]))
chain = write("chain.pem", *pem(svid.cert_chain))
key = write("key.pem", svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
bundle = write("roots.pem", *pem(roots))


def side(protocol):
    """One end of mutual TLS, as OpenSSL checks certificates: chain, dates and purpose."""
    made = ssl.SSLContext(protocol)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(bundle)
    made.load_cert_chain(chain, key)
    return made


def handshake():
    """Both ends with the same SVID, through memory; what the server sees of the client."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = side(ssl.PROTOCOL_TLS_SERVER).wrap_bio(to_server, to_client, server_side=True)
    end = side(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(to_client, to_server)
    waiting = [end, server]
    for _ in range(10):
        for one in list(waiting):
            try:
                one.do_handshake()
                waiting.remove(one)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return server.getpeercert()["subjectAltName"]
    raise RuntimeError("no handshake")


token = client.fetch_jwt_svid({audience})
keys = client.fetch_jwt_bundles().get_bundle_for_trust_domain(trust_domain)
offline = JwtSvid.parse_and_validate(token.token, keys, {audience})
online = client.validate_jwt_svid(token.token, audience)
try:
    client.fetch_jwt_svid({"somebody else"})
    refused = None
except Exception as error:
    refused = str(error)

print(json.dumps({
    "id": str(svid.spiffe_id),
    "chain": len(svid.cert_chain),
    "handshake": handshake(),
    "token": str(token.spiffe_id),
    "offline": str(offline.spiffe_id),
    "online": str(online.spiffe_id),
    "refused": refused,
}))
