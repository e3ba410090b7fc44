"""grpc_server.py PORT: a gRPC service without generated code; messages are plain bytes."""

import sys
from concurrent import futures

import grpc


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata([("initial", metadata.get("asked", "nothing"))])
    context.set_trailing_metadata([("trailing", "after"), ("trailing-bin", b"\x00\xff")])
    return b"got " + request


def stream(request, context):
    for number in range(int(request)):
        yield b"%d " % number * 1000


def both(requests, context):
    for request in requests:
        yield request[::-1]


def error(request, context):
    context.set_trailing_metadata([("reason", "as asked")])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: " + request.decode())


METHODS = {
    "/peers.Service/Unary": grpc.unary_unary_rpc_method_handler(unary),
    "/peers.Service/Stream": grpc.unary_stream_rpc_method_handler(stream),
    "/peers.Service/Both": grpc.stream_stream_rpc_method_handler(both),
    "/peers.Service/Error": grpc.unary_unary_rpc_method_handler(error),
}


class Service(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        return METHODS.get(handler_call_details.method)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), handlers=[Service()])
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
server.wait_for_termination()
