"""The reference's gRPC service, hedgeproto.Hedge, as its programs use it."""
import hashlib
import json
import queue
import struct
import subprocess
import threading
import time

import grpc

from hedge_harness import (MIB, DaemonTest, SharedTest, go_program,
                           hedge_error, main, random_bytes, resident, stubs,
                           wait_until)


class HedgeprotoTest(SharedTest):
    size = 2
    options = {"block_size": "256K", "mem_limit": "16M", "disk_limit": "32M",
               "sync_interval": "200ms"}

    def setUp(self):
        super().setUp()
        self.pb = stubs("hedgeproto")[0]

    def stub(self, node=None):
        return stubs("hedgeproto")[1].HedgeStub(
            (node or self.first).channel())

    def payload(self, data=b"", **meta):
        return self.pb.Payload(data=data, meta={
            k: str(v) for k, v in meta.items()})

    def write(self, name, records, node=None, **meta):
        """As the reference's Writer does: every record with the meta."""
        list(self.stub(node).SoSWrite(
            (self.payload(r, name=name, **meta) for r in records),
            timeout=60))

    def read(self, name, node=None):
        """As its Reader does: one message, and no end of sending before the
        answers have come."""
        requests = queue.Queue()
        requests.put(self.payload(name=name))
        replies = self.stub(node).SoSRead(iter(requests.get, None),
                                          timeout=60)
        data = [r.data for r in replies]
        requests.put(None)
        return data

    def close(self, name, node=None, **meta):
        self.stub(node).SoSClose(self.payload(name=name, **meta), timeout=10)

    def fails(self, status, call, *args, **kwargs):
        with self.assertRaises(grpc.RpcError) as caught:
            call(*args, **kwargs)
        self.assertEqual(caught.exception.code(), status,
                         caught.exception.details())
        return caught.exception.details()


class Parts(HedgeprotoTest):

    def test_round_trip(self):
        records = [b"one", b"", b"\0\xff" * 1000, random_bytes(3 * MIB),
                   *(b"record %d" % i for i in range(2000)), b"last"]
        self.write("rt", records, mlimit=0, dlimit=0, expire=30)
        self.assertEqual(self.read("rt"), records)
        self.assertEqual(self.read("rt"), records)
        self.write("rt", [b"more"])
        self.assertEqual(self.read("rt"), records + [b"more"])

    def test_a_name_space_of_each_node(self):
        first, second = self.nodes
        self.assert_done(first.ctl("sos", "write", "same", data=b"ours\n"))
        self.write("same", [b"part 1"], first)
        self.write("same", [b"part 2"], second)
        self.assertEqual(self.read("same", first), [b"part 1"])
        self.assertEqual(self.read("same", second), [b"part 2"])
        for node in self.nodes:
            self.assertEqual(node.ctl("sos", "read", "same").stdout, b"ours\n")
            names = [s["name"] for s in
                     node.ctl("sos", "ls", json_output=True).objects()]
            self.assertEqual(names.count("same"), 1)
        self.write("hidden", [b"x"])
        self.assert_status(first.ctl("sos", "stat", "hidden"), 3)
        self.assert_status(first.ctl("sos", "rm", "hidden"), 3)
        self.assert_done(first.ctl("sos", "rm", "same"))
        self.assertEqual(self.read("same", first), [b"part 1"])

    def test_it_fills_this_node_alone(self):
        first, second = self.nodes
        data = [random_bytes(MIB, i) for i in range(30)]
        self.write("spilled", data)
        self.assertEqual(self.read("spilled"), data)
        me = getattr(second.status(), "self")
        self.assertEqual(me.mem_lent + me.disk_lent, 0)
        # More than there is here: everything before is there.
        text = self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, self.write,
                          "spilled", [random_bytes(MIB, i)
                                      for i in range(30, 80)])
        self.assertIn("no room", text)
        got = self.read("spilled")
        self.assertGreater(len(got), 30)
        self.assertEqual(got[30:], [random_bytes(MIB, i)
                                    for i in range(30, len(got))])
        me = getattr(second.status(), "self")
        self.assertEqual(me.mem_lent + me.disk_lent, 0)
        self.close("spilled", expire=1)
        wait_until("it to be gone",
                   lambda: self.used([self.first]) < 20 * MIB)

    def test_limits(self):
        data = [random_bytes(100_000, i) for i in range(60)]
        self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, self.write, "limited",
                   data, mlimit=MIB, dlimit=MIB, expire=1)
        got = self.read("limited")
        self.assertTrue(5 < len(got) < 60, len(got))
        self.assertEqual(got, data[:len(got)])
        self.close("limited")

    def test_expiry(self):
        self.write("brief", [b"x"], expire=1)
        self.write("closed", [b"y"], expire=1)
        self.close("closed")

        def gone():
            try:
                self.read("closed")
            except grpc.RpcError as e:
                self.assertEqual(e.code(), grpc.StatusCode.NOT_FOUND)
                return True
            time.sleep(1.2)  # Reading starts its time anew.
            return False
        wait_until("it to expire", gone)
        self.assertEqual(self.read("brief"), [b"x"])  # Nobody closed it.
        self.close("brief")

    def test_what_is_refused(self):
        bad = grpc.StatusCode.INVALID_ARGUMENT
        for name in ("", "a/b", "..", "x" * 300, "a\nb"):
            self.fails(bad, self.write, name, [b"x"])
            self.fails(bad, self.read, name)
            self.fails(bad, self.close, name)
        for meta in ({"mlimit": "x"}, {"dlimit": "-1"}, {"expire": "1.5"},
                     {"expire": 10 ** 12}, {"mlimit": 10 ** 30}):
            self.fails(bad, self.write, "meta", [b"x"], **meta)
        self.fails(grpc.StatusCode.NOT_FOUND, self.read, "never")
        self.fails(grpc.StatusCode.NOT_FOUND, self.close, "never")
        self.fails(bad, lambda: list(self.stub().SoSWrite(
            iter([self.payload(b"no name")]), timeout=10)))
        self.fails(bad, lambda: list(self.stub().SoSWrite(iter([
            self.payload(b"x", name="one"), self.payload(b"x", name="two")]),
            timeout=10)))
        self.fails(bad, self.write, "meta", [b"x"],
                   **{f"k{i}": "v" for i in range(200)})

    def test_a_writer_that_vanishes(self):
        requests = queue.Queue()
        call = self.stub().SoSWrite(iter(requests.get, None), timeout=60)
        for i in range(50):
            requests.put(self.payload(random_bytes(50_000, i), name="torn"))
        wait_until("something to arrive", lambda: "torn" and self.first
                   .status().stores >= 1)
        call.cancel()
        requests.put(None)

        def torn():
            try:
                self.read("torn")
            except grpc.RpcError as e:
                return hedge_error(e) == "EABORTED"
            return False
        wait_until("the reader to be told", torn)
        self.close("torn", expire=1)

    def test_many_at_once(self):
        """Parts are made, filled, read and ended by all at the same time."""
        failures = []

        def client(i):
            for j in range(15):
                name, data = f"many {i} {j}", [b"%d %d" % (i, j)] * 50
                try:
                    self.write(name, data)
                    self.write(f"many {j}", [b"x"])  # Of all of them.
                    if self.read(name) != data:
                        failures.append(name)
                    self.close(name, expire=1)
                except grpc.RpcError as e:
                    failures.append(f"{name}: {e.details()}")
        threads = [threading.Thread(target=client, args=(i,))
                   for i in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(failures, [])
        for j in range(15):
            self.assertEqual(self.read(f"many {j}"), [b"x"] * 6)
            self.close(f"many {j}", expire=1)

    def test_junk(self):
        for method in ("Send", "Broadcast", "SoSWrite", "SoSRead",
                       "SoSClose"):
            for data in (b"\xff", b"\x0a\x7f", b"\x12\xff\xff\xff\xff\x0f",
                         random_bytes(100), b"\x0a\x00" * 1_000_000):
                call = self.first.channel().stream_stream(
                    f"/hedgeproto.Hedge/{method}")(iter([data]), timeout=10)
                try:
                    list(call)
                except grpc.RpcError:
                    pass
                self.assertNotEqual(call.code(), grpc.StatusCode.OK, method)
        self.assertTrue(self.first.is_running())


class Streams(HedgeprotoTest):

    def converse(self, method, node, messages):
        call = getattr(self.stub(node), method)(iter(messages), timeout=30)
        return [r.data for r in call]

    def test_send(self):
        leader = self.shared.leader()
        messages = [self.payload(m, id="x") for m in
                    (b"one", b"", b"\0\xff", random_bytes(MIB))]
        self.assertEqual(self.converse("Send", leader, messages),
                         [f"{leader.id}: ".encode() + m.data
                          for m in messages])
        other, = [n for n in self.nodes if n is not leader]
        text = self.fails(grpc.StatusCode.FAILED_PRECONDITION, self.converse,
                          "Send", other, messages)
        self.assertIn("leader", text)

    def test_broadcast(self):
        for node in self.nodes:
            self.assertEqual(
                self.converse("Broadcast", node, [self.payload(b"x")] * 20),
                [f"{node.id}: x".encode()] * 20)

    def test_streams_apart(self):
        replies = {}

        def client(i):
            messages = [self.payload(b"%d %d" % (i, j)) for j in range(50)]
            replies[i] = self.converse("Broadcast", self.first, messages)
        threads = [threading.Thread(target=client, args=(i,))
                   for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for i in range(8):
            self.assertEqual(replies[i], [
                f"{self.first.id}: {i} {j}".encode() for j in range(50)])


class GoModule(HedgeprotoTest):
    """The reference's own module of the service (tests/goclient)."""

    def setUp(self):
        super().setUp()
        self.program, why_not = go_program("goclient")
        if self.program is None:
            self.skipTest(why_not)

    def tasks(self, node, *tasks):
        done = subprocess.run(
            [self.program, node.grpc],
            input="".join(json.dumps(t) + "\n" for t in tasks), text=True,
            capture_output=True, timeout=120)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_parts(self):
        count, size = 3000, 20000
        wrote, again, got, closed = self.tasks(
            self.first,
            {"call": "write", "name": "go", "count": count, "size": size,
             "meta": {"mlimit": str(8 * MIB), "dlimit": "0", "expire": "1"}},
            {"call": "read", "name": "go"}, {"call": "read", "name": "go"},
            {"call": "close", "name": "go"})
        records = [bytes([i % 256]) * (i % size) for i in range(count)]
        digest = hashlib.sha256()
        for r in records:
            digest.update(struct.pack("<I", len(r)) + r)
        for a in (wrote, again, got):
            self.assertEqual((a["status"], a["records"], a["sum"]),
                             ("OK", count, digest.hexdigest()), a)
        self.assertEqual(closed["status"], "OK", closed)

    def test_errors(self):
        never, bad, full = self.tasks(
            self.first, {"call": "read", "name": "never"},
            {"call": "write", "name": "a/b", "count": 1, "size": 1},
            {"call": "write", "name": "go full", "count": 3000, "size": 9000,
             "meta": {"mlimit": str(MIB), "dlimit": str(MIB),
                      "expire": "1"}})
        self.assertEqual(never["status"], "NotFound", never)
        self.assertEqual(bad["status"], "InvalidArgument", bad)
        self.assertEqual(full["status"], "ResourceExhausted", full)
        self.tasks(self.first, {"call": "close", "name": "go full"})

    def test_streams(self):
        leader = self.shared.leader()
        other, = [n for n in self.nodes if n is not leader]
        messages = ["one", "", "two" * 100_000]
        sent, spread = self.tasks(
            leader, {"call": "send", "messages": messages},
            {"call": "broadcast", "messages": messages})
        for a in (sent, spread):
            self.assertEqual(a["status"], "OK", a)
            self.assertEqual(a["replies"],
                             [f"{leader.id}: {m}" for m in messages])
        refused, = self.tasks(other, {"call": "send", "messages": ["x"]})
        self.assertEqual(refused["status"], "FailedPrecondition", refused)


class Life(DaemonTest):

    def test_messages_count(self):
        node = self.node(message_limit="16M", mem_limit="16M",
                         broadcast_handler="sleep 5")
        pb, pb_grpc = stubs("hedgeproto")
        stub = pb_grpc.HedgeStub(node.channel())
        before, message = resident(node.pid), pb.Payload(data=bytes(7 * MIB))

        def client():
            try:
                list(stub.Broadcast(iter([message]), timeout=4))
            except grpc.RpcError:
                pass
        threads = [threading.Thread(target=client) for _ in range(40)]
        for t in threads:
            t.start()
        peak = 0
        while any(t.is_alive() for t in threads):
            peak = max(peak, resident(node.pid) - before)
            time.sleep(0.05)
        self.assertLess(peak, 80 * MIB)

    def test_stopping_with_streams(self):
        """A node ends although its clients keep their streams open."""
        node = self.node()
        pb, pb_grpc = stubs("hedgeproto")
        stub = pb_grpc.HedgeStub(node.channel())
        ends, calls = [], []
        for method in ("Send", "Broadcast", "SoSWrite", "SoSRead"):
            requests = queue.Queue()
            requests.put(pb.Payload(data=b"x", meta={"name": "s"}))
            ends.append(requests)
            calls.append(getattr(stub, method)(iter(requests.get, None),
                                               timeout=100))
        for call in calls[:2]:
            self.assertTrue(next(call).data.endswith(b"x"))
        wait_until("the store", lambda: node.status().stores == 1)
        self.assertEqual(node.terminate(), 0)
        for call, requests in zip(calls, ends):
            with self.assertRaises(grpc.RpcError):
                list(call)
            requests.put(None)

    def test_memory_returns(self):
        node = self.node()
        pb, pb_grpc = stubs("hedgeproto")
        stub = pb_grpc.HedgeStub(node.channel())
        for i in range(3):
            meta = {"name": f"s{i}", "expire": "1"}
            list(stub.SoSWrite((pb.Payload(data=random_bytes(MIB), meta=meta)
                                for _ in range(20)), timeout=30))
        self.assertGreater(self.used(), 50 * MIB)
        for i in range(3):
            stub.SoSClose(pb.Payload(meta={"name": f"s{i}"}), timeout=10)
        self.wait_unused()
        self.assertEqual(node.status().stores, 0)
        self.assertEqual(node.terminate(), 0)


if __name__ == "__main__":
    main()
