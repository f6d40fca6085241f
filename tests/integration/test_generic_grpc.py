"""Clients that know nothing of hedge: health, and calls made from what server
reflection tells."""
import os
import queue
import resource
import socket
import threading
import time

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from hedge_harness import (DaemonTest, SharedTest, main, stubs, wait_until)

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


class Reflection:
    """A client made of what one node says of itself."""

    def __init__(self, channel, version):
        schema = {"v1": "reflection",
                  "v1alpha": "reflection_v1alpha"}[version]
        self.pb, pb_grpc = stubs(schema)
        self.stub = pb_grpc.ServerReflectionStub(channel)
        self.channel = channel
        self.pool = descriptor_pool.DescriptorPool()

    def ask(self, *requests):
        return list(self.stub.ServerReflectionInfo(
            iter(self.pb.ServerReflectionRequest(**r) for r in requests),
            timeout=10))

    def services(self):
        reply, = self.ask({"list_services": ""})
        return [s.name for s in reply.list_services_response.service]

    def load(self, symbol):
        """The files that a symbol needs, given to the pool."""
        reply, = self.ask({"file_containing_symbol": symbol})
        for data in reversed(
                reply.file_descriptor_response.file_descriptor_proto):
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            try:
                self.pool.FindFileByName(file.name)
            except KeyError:
                self.pool.Add(file)

    def call(self, service, method, **fields):
        self.load(service)
        m = self.pool.FindServiceByName(service).methods_by_name[method]
        make = message_factory.MessageFactory(self.pool).GetPrototype
        return self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda x: x.SerializeToString(),
            response_deserializer=make(m.output_type).FromString)(
                make(m.input_type)(**fields), timeout=10)


class Generic(SharedTest):
    size = 2

    def reflections(self):
        for version in ("v1", "v1alpha"):
            yield Reflection(self.first.channel(), version)

    def test_services(self):
        for r in self.reflections():
            services = r.services()
            self.assertLessEqual({
                "hedge.v1.Store", "hedge.v1.Cluster", "hedge.v1.Peer",
                "grpc.health.v1.Health", "hedgeproto.Hedge",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection"}, set(services))
            self.assertEqual(len(services), len(set(services)))

    def test_every_method_is_served(self):
        r = Reflection(self.first.channel(), "v1")
        for service in r.services():
            r.load(service)
            for m in r.pool.FindServiceByName(service).methods:
                call = self.first.channel().stream_stream(
                    f"/{service}/{m.name}")(iter([b"\xff"]), timeout=10)
                try:
                    list(call)
                except grpc.RpcError:
                    pass
                self.assertNotEqual(call.code(),
                                    grpc.StatusCode.UNIMPLEMENTED,
                                    f"{service}/{m.name}")

    def test_call(self):
        for r in self.reflections():
            members = r.call("hedge.v1.Cluster", "Members")
            self.assertEqual(sorted(m.id for m in members.members),
                             sorted(n.id for n in self.nodes))
            self.assertEqual(
                r.call("grpc.health.v1.Health", "Check").status, SERVING)

    def test_symbols(self):
        for r in self.reflections():
            for symbol, file in (
                    ("hedge.v1.Store", "hedge.proto"),
                    ("hedge.v1.Store.Write", "hedge.proto"),
                    ("hedge.v1.WriteRequest", "hedge.proto"),
                    ("hedge.v1.WriteRequest.commit", "hedge.proto"),
                    ("hedge.v1.Compression", "hedge.proto"),
                    ("hedgeproto.Payload", "hedgeproto.proto"),
                    ("hedgeproto.Payload.MetaEntry", "hedgeproto.proto"),
                    ("hedgeproto.Payload.MetaEntry.key", "hedgeproto.proto"),
                    ("grpc.health.v1.HealthCheckResponse.ServingStatus",
                     "health.proto")):
                reply, = r.ask({"file_containing_symbol": symbol})
                files = [descriptor_pb2.FileDescriptorProto.FromString(d)
                         for d in reply.file_descriptor_response
                         .file_descriptor_proto]
                self.assertEqual([f.name for f in files], [file], symbol)
                self.assertEqual(
                    reply.original_request.file_containing_symbol, symbol)
                by_name, = r.ask({"file_by_filename": file})
                self.assertEqual(by_name.file_descriptor_response,
                                 reply.file_descriptor_response)

    def test_what_there_is_not(self):
        for r in self.reflections():
            for symbol in ("hedge.v1.Stor", "hedge.v1.Store.Wri", "hedge.v1",
                           "hedge.v1.Store.Write.x", "hedge", "", ".",
                           "hedge.v1.", "hedge.v1..Store", "x" * 5000):
                reply, = r.ask({"file_containing_symbol": symbol})
                self.assertEqual(reply.error_response.error_code, 5, symbol)
            replies = r.ask(
                {"file_by_filename": "../hedge.proto"},
                {},
                {"all_extension_numbers_of_type": "hedge.v1.Member"},
                {"all_extension_numbers_of_type": "hedge.v1.Store"},
                {"file_containing_extension": r.pb.ExtensionRequest(
                    containing_type="hedge.v1.Member", extension_number=7)})
            self.assertEqual(
                [x.error_response.error_code for x in replies],
                [5, 3, 0, 5, 5])
            self.assertEqual(
                replies[2].all_extension_numbers_response.base_type_name,
                "hedge.v1.Member")

    def test_junk(self):
        for method in ("grpc.reflection.v1.ServerReflection/"
                       "ServerReflectionInfo", "grpc.health.v1.Health/Watch",
                       "grpc.health.v1.Health/Check"):
            call = self.first.channel().stream_stream("/" + method)(
                iter([b"\xff\xff"]), timeout=10)
            with self.assertRaises(grpc.RpcError):
                list(call)
            self.assertEqual(call.code(), grpc.StatusCode.INVALID_ARGUMENT)


class Health(DaemonTest):

    def stub(self, node):
        self.pb, pb_grpc = stubs("health")
        return pb_grpc.HealthStub(node.channel())

    def check(self, node, service=""):
        stub = self.stub(node)
        return stub.Check(self.pb.HealthCheckRequest(service=service),
                          timeout=10).status

    def watch(self, node, service=""):
        """A queue of what is heard; None at the end."""
        stub = self.stub(node)
        replies = stub.Watch(self.pb.HealthCheckRequest(service=service),
                             timeout=60)
        heard = queue.Queue()

        def listen():
            try:
                for reply in replies:
                    heard.put(reply.status)
            except grpc.RpcError:
                pass
            heard.put(None)
        threading.Thread(target=listen, daemon=True).start()
        return heard

    def test_serving(self):
        node = self.node()
        wait_until("the node to serve", lambda: self.check(node) == SERVING)
        for service in ("hedge.v1.Store", "hedge.v1.Peer",
                        "hedgeproto.Hedge", "grpc.health.v1.Health"):
            self.assertEqual(self.check(node, service), SERVING)
        with self.assertRaises(grpc.RpcError) as caught:
            self.check(node, "hedge.v1.Nothing")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        unknown = self.watch(node, "hedge.v1.Nothing")
        self.assertEqual(unknown.get(timeout=10), SERVICE_UNKNOWN)
        heard = self.watch(node, "hedge.v1.Store")
        self.assertEqual(heard.get(timeout=10), SERVING)
        self.assertEqual(node.terminate(), 0)
        self.assertEqual(heard.get(timeout=10), NOT_SERVING)
        self.assertIsNone(heard.get(timeout=10))

    def test_out_of_the_group(self):
        # Refused for its block size, it is up and does not serve. (Nor does it
        # come to lead because the first is slow: the lease is long.)
        self.node(lease="1m")
        stranger = self.node(start=False, lease="1m", block_size="256K")
        stranger.start(wait=False)
        stranger.wait_ready(leader=False)
        self.assertEqual(self.check(stranger), NOT_SERVING)
        heard = self.watch(stranger)
        self.assertEqual(heard.get(timeout=10), NOT_SERVING)
        wait_until("the refusal", lambda: "not in the group"
                   in stranger.log_tail())
        self.assertEqual(self.check(stranger), NOT_SERVING)
        self.assertTrue(heard.empty())

    def test_leader_gone(self):
        first, second = self.node(), self.node()
        wait_until("both to serve", lambda: [
            self.check(n) for n in (first, second)] == [SERVING] * 2)
        heard = self.watch(second)
        self.assertEqual(heard.get(timeout=10), SERVING)
        first.kill()
        self.assertEqual(heard.get(timeout=20), NOT_SERVING)
        self.assertEqual(heard.get(timeout=20), SERVING)  # It leads.


class Descriptors(DaemonTest):

    def test_running_out_of_them(self):
        node = self.node(mem_limit="16M", disk_limit="0")
        open_now = len(os.listdir(f"/proc/{node.pid}/fd"))
        most = open_now + 30
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (most, most))
        host, port = node.grpc.rsplit(":", 1)
        clients = [socket.create_connection((host, int(port)), 10)
                   for _ in range(60)]
        wait_until("descriptors to run out", lambda: len(
            os.listdir(f"/proc/{node.pid}/fd")) == most)
        time.sleep(0.5)
        for c in clients:
            c.close()
        for _ in range(3):
            self.assert_done(node.ctl("status"))
        self.assertEqual(node.terminate(), 0)


if __name__ == "__main__":
    main()
