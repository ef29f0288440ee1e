"""TLS of the OCPP port: what is spoken, and who the other side has proven to be."""

from __future__ import annotations

import ssl
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from cloud.communication.admission import ClientCertificate
from cloud.kernel.embedded.tls import TlsFiles

CIPHERS: Final = ":".join(
    f"ECDHE-{key}-AES{bits}-GCM-SHA{digest}"
    for bits, digest in ((128, 256), (256, 384))
    for key in ("ECDSA", "RSA")
)
"""Of TLS 1.2; those of 1.3 are all good."""
HANDSHAKE_S: Final = 10.0
"""What a TLS handshake may take, and then an upgrade request: a modem's slowest, no idler's."""


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """One port for security profiles 2 and 3: a client's certificate is asked for, not demanded.

    One that is offered must be good, or the handshake fails. A resumed session is not verified
    anew, so the end and the revocation of its certificate are looked at by the rules of admission.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= (
        ssl.OP_CIPHER_SERVER_PREFERENCE
        | ssl.OP_NO_COMPRESSION
        | ssl.OP_NO_RENEGOTIATION
        | ssl.OP_SINGLE_ECDH_USE
    )
    context.num_tickets = 1
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    issuer = x509.load_pem_x509_certificates(files.ca.read_bytes())[0]  # and no cousin of its root
    context.load_verify_locations(cadata=issuer.public_bytes(serialization.Encoding.PEM).decode())
    load_server_certificate(context, files)
    return context


def load_server_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Take the files as they are now; connections that stand keep the one they began with."""
    context.load_cert_chain(files.certificate, files.key)


def client_certificate(tls: ssl.SSLObject | ssl.SSLSocket | None) -> ClientCertificate | None:
    """The certificate that the client has proven to be its own, from the transport's ssl_object."""
    der = None if tls is None else tls.getpeercert(binary_form=True)
    return None if der is None else read_certificate(x509.load_der_x509_certificate(der))


def read_certificate(certificate: x509.Certificate) -> ClientCertificate:
    """What the rules of admission look at."""
    return ClientCertificate(
        common_name=_only(certificate.subject, NameOID.COMMON_NAME),
        organization=_only(certificate.subject, NameOID.ORGANIZATION_NAME),
        serial=f"{certificate.serial_number:x}",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_after=certificate.not_valid_after_utc,
    )


def _only(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    """Nothing when it is told twice: who would say which one counts?"""
    found = [str(attribute.value) for attribute in name.get_attributes_for_oid(oid)]
    return found[0] if len(found) == 1 else ""
