"""Another implementation's Workload API, as far as a sidecar asks: an RSA SVID of its own trust domain.

usage: spiffe_agent.py SOCKET SPIFFE-ID BUNDLE; writes its root to BUNDLE and serves until it is killed.
"""

import datetime
import sys
from concurrent import futures

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from spiffe._proto import workload_pb2, workload_pb2_grpc

socket, spiffe_id, bundle = sys.argv[1:]
trust_domain = "/".join(spiffe_id.split("/")[:3])
now = datetime.datetime.now(datetime.timezone.utc)


def usage(signs, certifies):
    return x509.KeyUsage(signs, False, False, False, False, certifies, certifies, False, False)


def certificate(name, uri, key, issuer, issuer_key, is_authority):
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
    builder = x509.CertificateBuilder(
        issuer.subject if issuer else subject, subject, key.public_key(), x509.random_serial_number(),
        now - datetime.timedelta(minutes=5), now + datetime.timedelta(hours=1),
    )
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
    builder = builder.add_extension(usage(not is_authority, is_authority), critical=True)
    if not is_authority:
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def key():
    return rsa.generate_private_key(65537, 2048)


root_key, leaf_key = key(), key()
root = certificate("root", trust_domain, root_key, None, root_key, True)
leaf = certificate("leaf", spiffe_id, leaf_key, root, root_key, False)
with open(bundle, "wb") as file:
    file.write(root.public_bytes(Encoding.PEM))


class Agent(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    def FetchX509SVID(self, request, context):
        if dict(context.invocation_metadata()).get("workload.spiffe.io") != "true":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        yield workload_pb2.X509SVIDResponse(svids=[workload_pb2.X509SVID(
            spiffe_id=spiffe_id,
            x509_svid=leaf.public_bytes(Encoding.DER),
            x509_svid_key=leaf_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            bundle=root.public_bytes(Encoding.DER),
        )])


server = grpc.server(futures.ThreadPoolExecutor(4))
workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(Agent(), server)
server.add_insecure_port(f"unix:{socket}")
server.start()
print("serving", flush=True)
server.wait_for_termination()
