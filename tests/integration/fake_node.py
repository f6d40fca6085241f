"""A node that is not one: what hedgectl asks for, answered from a table."""
import concurrent.futures

import grpc

from hedge_harness import free_ports, stubs


class Refusal(grpc.GenericRpcHandler):
    """Answers every call that nothing else serves with one error."""

    def __init__(self):
        self.error = "ENOTSUP"

    def service(self, details):
        def refuse(_requests, context):
            context.set_trailing_metadata((("hedge-error", self.error),))
            context.abort(grpc.StatusCode.UNKNOWN, f"refused: {self.error}")
        del details
        return grpc.stream_stream_rpc_method_handler(refuse)


class FakeNode:
    """Serves Cluster and Store on port + 1 (or the port itself). Errors of
    stores by name: {"gone": ("ENOTFOUND", NOT_FOUND, "no store 'gone'")}."""

    def __init__(self, on_port_itself=False, errors=None, missing=()):
        self.pb, services = stubs()
        self.port = free_ports(2)
        self.id = f"127.0.0.1:{self.port}"
        self.errors = errors or {}
        self.missing = missing
        self.removed = []
        self.member_lists = [self.members(2), self.members(3)]
        address = f"127.0.0.1:{self.port + (0 if on_port_itself else 1)}"
        self.server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(8),
            options=[("grpc.so_reuseport", 0)])
        services.add_ClusterServicer_to_server(self, self.server)
        services.add_StoreServicer_to_server(self, self.server)
        self.refusal = Refusal()
        self.server.add_generic_rpc_handlers((self.refusal,))
        self.server.add_insecure_port(address)
        self.server.start()

    def stop(self):
        self.server.stop(0).wait()

    def members(self, n):
        reply = self.pb.MembersReply(version=n, token=7)
        for i in range(n):
            reply.members.add(
                id=f"127.0.0.1:{8080 + 10 * i}", leader=i == 0,
                incarnation=(1 << 63) + i, mem_free=(1 << 53) + 1,
                disk_free=i, version="0.1.0",
                grpc_address=f"127.0.0.1:{8081 + 10 * i}")
        return reply

    def store(self, name):
        info = self.pb.StoreInfo(
            name=name, owner=self.id, generation=(1 << 63) + 5, records=3,
            bytes=1 << 60, digest=bytes(range(16)), state="closed",
            expires_at_ms=1_700_000_000_123, readers=0, writers=0)
        info.tiers.add(node=self.id, tier="memory", blocks=1, bytes=10,
                       stored_bytes=5)
        info.tiers.add(node=self.id, tier="disk", blocks=2, bytes=20,
                       stored_bytes=20)
        info.options.ttl_ms = 3_600_000
        info.options.replicas = 2
        info.options.compression = self.pb.COMPRESSION_ZSTD
        info.options.compression_level = 3
        return info

    def check(self, name, context):
        if name in self.errors:
            self.abort(context, *self.errors[name])

    @staticmethod
    def abort(context, code, status, text):
        context.set_trailing_metadata((("hedge-error", code),))
        context.abort(status, text)

    # pylint: disable=invalid-name,missing-function-docstring
    def Status(self, _request, _context):
        reply = self.pb.StatusReply(group="test", engine="lmdb:/x",
                                    leader=self.id, token=7, stores=2,
                                    block_size=1 << 20)
        reply.self.id = self.id
        reply.features.add(name="io_uring", on=False, detail="refused")
        return reply

    def Members(self, _request, _context):
        return self.member_lists[0]

    def WatchMembers(self, _request, _context):
        yield from self.member_lists

    def Leader(self, _request, _context):
        return self.pb.LeaderReply(id=self.id, token=(1 << 53) + 1,
                                   lease_ms=10000)

    def Stat(self, request, context):
        self.check(request.name, context)
        return self.store(request.name)

    def List(self, _request, _context):
        return self.pb.ListReply(stores=[self.store("a"), self.store("bé")],
                                 missing=self.missing)

    def Remove(self, request, context):
        self.check(request.name, context)
        self.removed.append(request.name)
        return self.pb.Empty()

    def Write(self, _requests, context):
        self.abort(context, self.refusal.error, grpc.StatusCode.UNKNOWN,
                   "refused")

    def Read(self, _requests, context):
        self.abort(context, self.refusal.error, grpc.StatusCode.UNKNOWN,
                   "refused")
