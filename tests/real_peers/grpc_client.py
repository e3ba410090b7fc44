"""grpc_client.py HOST:PORT: one call of each kind, and prints what came back, as JSON."""

import hashlib
import json
import queue
import sys

import grpc

LIMIT = 50


def metadata(fields):
    return sorted((key, repr(value)) for key, value in fields or ())


def unary(channel):
    call = channel.unary_unary("/peers.Service/Unary")
    response, call = call.with_call(b"x" * 100_000, metadata=[("asked", "for this")], timeout=LIMIT)
    fields = [metadata(call.initial_metadata()), metadata(call.trailing_metadata())]
    return [len(response), hashlib.sha256(response).hexdigest(), *fields]


def stream(channel):
    call = channel.unary_stream("/peers.Service/Stream")
    return [hashlib.sha256(message).hexdigest() for message in call(b"200", timeout=LIMIT)]


def both(channel):
    """Each question waits for the answer to the one before: the call has to flow both ways at once."""
    questions, answers = queue.Queue(), []
    questions.put(b"question 0")
    call = channel.stream_stream("/peers.Service/Both")
    for answer in call(iter(questions.get, None), timeout=LIMIT):
        answers.append(answer.decode())
        questions.put(b"question %d" % len(answers) if len(answers) < 10 else None)
    return answers


def failure(method):
    def call(channel):
        try:
            channel.unary_unary(method)(b"a reason", timeout=LIMIT)
        except grpc.RpcError as error:
            return [error.code().name, error.details(), metadata(error.trailing_metadata())]

    return call


CALLS = {
    "unary": unary,
    "stream": stream,
    "both": both,
    "error": failure("/peers.Service/Error"),
    "missing": failure("/peers.Service/Missing"),
}

with grpc.insecure_channel(sys.argv[1]) as channel:
    print(json.dumps({name: call(channel) for name, call in CALLS.items()}, indent=1))
