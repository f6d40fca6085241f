"""A gRPC client that is not ours, well-behaved and not."""
import concurrent.futures
import ctypes
import queue
import random
import socket
import struct
import time

import grpc

from hedge_harness import (KIB, MIB, SharedTest, hedge_error, main,
                           random_bytes, stubs, wait_until)

HEADER = struct.Struct("<IBBHQQIIIIIQQI")  # store/block.h
MAGIC = 0x4b4c4248
FIRST_NONE = 0xffffffff
WINDOW = 8


def xxh3(data):
    """XXH3-64, of the library that the nodes use."""
    fn = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    fn.restype, fn.argtypes = ctypes.c_uint64, [ctypes.c_char_p,
                                                ctypes.c_size_t]
    return fn(data, len(data))


class Requests:
    """The sending side of a stream, message by message."""

    def __init__(self, *messages):
        self.queue = queue.Queue()
        for m in messages:
            self.queue.put(m)

    def send(self, message):
        self.queue.put(message)

    def close(self):
        self.queue.put(None)

    def __iter__(self):
        return self

    def __next__(self):
        message = self.queue.get()
        if message is None:
            raise StopIteration
        return message


class ForeignTest(SharedTest):
    size = 2
    options = {"block_size": "256K", "mem_limit": "24M", "disk_limit": "64M",
               "sync_interval": "200ms"}

    def setUp(self):
        super().setUp()
        self.pb = stubs()[0]
        self.store = self.first.store()

    def tearDown(self):
        # However a client has behaved, the nodes live and work.
        for node in self.nodes:
            node.status()
        self.assert_done(self.first.ctl("sos", "write", "after",
                                        data=b"one\n"))
        self.assertEqual(self.nodes[1].ctl("sos", "read", "after").stdout,
                         b"one\n")
        for info in self.first.ctl("sos", "ls", json_output=True).objects():
            self.first.ctl("sos", "rm", info["name"])
        self.wait_unused(timeout=20)

    def open_write(self, name, node=None, append=False, **options):
        """(requests, replies, the first reply)."""
        opening = self.pb.WriteOpen(name=name, append=append)
        if options:
            opening.options.CopyFrom(self.pb.StoreOptions(**options))
        requests = Requests(self.pb.WriteRequest(open=opening))
        replies = (node or self.first).store().Write(requests, timeout=60)
        return requests, replies, next(replies)

    def records(self, *records):
        return self.pb.WriteRequest(records=self.pb.Records(record=records))

    def write(self, name, records, node=None, per_message=100, **options):
        requests, replies, first = self.open_write(name, node, **options)
        self.assertTrue(first.opened.owner, first)
        credits = first.credits
        for batch in self.batches(records, per_message):
            while credits == 0:
                credits += next(replies).credits
            requests.send(self.records(*batch))
            credits -= 1
        requests.send(self.pb.WriteRequest(commit=self.pb.WriteCommit(
            records=len(records), bytes=sum(map(len, records)))))
        requests.close()
        committed = [r.committed for r in replies if r.HasField("committed")]
        self.assertEqual(len(committed), 1)
        return committed[0]

    @staticmethod
    def batches(records, most):
        batch, size = [], 0
        for r in records:
            if len(batch) == most or size + len(r) > 7 * MIB:
                yield batch
                batch, size = [], 0
            batch.append(r)
            size += len(r)
        if batch:
            yield batch

    def read_blocks(self, name, node=None, **options):
        """All replies of a reader that gives a credit for each block."""
        requests = Requests(self.pb.ReadRequest(
            open=self.pb.ReadOpen(name=name, **options), credits=WINDOW))
        replies = []
        for reply in (node or self.first).store().Read(requests, timeout=60):
            replies.append(reply)
            if reply.block:
                requests.send(self.pb.ReadRequest(credits=1))
            if reply.HasField("end"):
                requests.close()
        return replies

    def parse(self, replies):
        """The records of raw blocks of one writer."""
        self.assertTrue(replies[0].opened)
        self.assertEqual(replies[0].block_size, 256 * KIB)
        self.assertTrue(replies[-1].HasField("end"))
        out, partial, owed, sequence = [], b"", 0, 0
        for r in replies[1:-1]:
            head = HEADER.unpack_from(r.block)
            (magic, version, codec, flags, _, seq, _, n, first, raw_len,
             stored_len, raw_sum, stored_sum, _) = head
            self.assertEqual((magic, version, codec), (MAGIC, 1, 0))
            self.assertEqual(len(r.block), HEADER.size + stored_len)
            self.assertEqual((raw_len, raw_sum), (stored_len, stored_sum))
            self.assertEqual(seq, sequence)
            sequence += 1
            raw = r.block[HEADER.size:]
            at = 0
            if owed:
                at = min(owed, raw_len)
                self.assertEqual(first, at if n else FIRST_NONE)
                partial += raw[:at]
                owed -= at
                if not owed:
                    out.append(partial)
            for _ in range(n):
                size, = struct.unpack_from("<I", raw, at)
                at += 4
                partial = raw[at:at + size]
                owed = size - len(partial)
                at += len(partial)
                if not owed:
                    out.append(partial)
            self.assertEqual(at, raw_len)
            self.assertEqual(bool(flags & 1), owed > 0)
        self.assertEqual(owed, 0)
        return out


class Foreign(ForeignTest):

    def test_cluster(self):
        for node in self.nodes:
            members = node.cluster().Members(self.pb.Empty(), timeout=5)
            self.assertEqual([m.id for m in members.members],
                             sorted(n.id for n in self.nodes))
            leader = node.cluster().Leader(self.pb.Empty(), timeout=5)
            self.assertEqual([m.id for m in members.members if m.leader],
                             [leader.id])
            self.assertGreater(leader.token, 0)
            self.assertEqual(leader.token, members.token)
            status = node.status()
            me = getattr(status, "self")
            self.assertEqual((me.id, status.leader), (node.id, leader.id))
            self.assertEqual(me.leader, node.id == leader.id)
            self.assertEqual(status.block_size, 256 * KIB)
            self.assertEqual(status.group, "test")

    def test_watch_members(self):
        watch = self.first.cluster().WatchMembers(self.pb.Empty(), timeout=20)
        first = next(watch)
        self.assertEqual(len(first.members), 2)
        self.write("x", [b"x" * MIB])
        self.assertGreater(next(watch).version, first.version)
        watch.cancel()

    def test_records(self):
        records = [b"", b"one", b"x" * 100_000, b"", random_bytes(700_000),
                   b"\0" * 5, b"last"]
        info = self.write("x", records, per_message=2)
        self.assertEqual(info.records, len(records))
        self.assertEqual(info.bytes, sum(map(len, records)))
        self.assertEqual(len(info.digest), 16)
        for node in self.nodes:
            self.assertEqual(self.parse(self.read_blocks("x", node)), records)
            got = node.ctl("sos", "read", "x").stdout
            self.assertEqual(got, b"".join(records))

    def test_many_records(self):
        records = [b"record %d" % i for i in range(50_000)]
        info = self.write("x", records, per_message=1000)
        self.assertEqual(info.records, 50_000)
        replies = self.read_blocks("x")
        self.assertEqual(self.parse(replies), records)
        end = replies[-1].end
        self.assertTrue(end.complete)
        self.assertEqual(end.info.digest, info.digest)
        self.assertEqual(end.info.state, "closed")

    def test_more_than_a_window(self):
        records = [random_bytes(100_000, i) for i in range(150)]
        self.write("x", records, per_message=1)
        for node in self.nodes:
            self.assertEqual(self.parse(self.read_blocks("x", node)), records)

    def test_read_what_hedgectl_wrote(self):
        data = random_bytes(3 * MIB).replace(b"\n", b" ") + b"\nend\n\n"
        self.assert_done(self.first.ctl("sos", "write", "x", "--compress",
                                        "none", data=data))
        self.assertEqual(b"".join(self.parse(self.read_blocks("x"))), data)

    def test_stat_list_remove(self):
        records = [b"a", b"b"]
        self.write("x", records, ttl_ms=60_000)
        self.write("y", [], self.nodes[1])
        for node in self.nodes:
            info = node.store().Stat(self.pb.StoreRequest(name="x"), timeout=5)
            self.assertEqual((info.name, info.owner, info.records, info.bytes,
                              info.state), ("x", self.first.id, 2, 2,
                                            "closed"))
            self.assertEqual(info.options.ttl_ms, 60_000)
            self.assertEqual(info.options.replicas, 1)
            left = info.expires_at_ms - time.time() * 1000
            self.assertTrue(50_000 < left <= 61_000, left)
            found = node.store().List(self.pb.ListRequest(), timeout=5)
            self.assertEqual(sorted(s.name for s in found.stores), ["x", "y"])
            self.assertEqual(list(found.missing), [])
        self.nodes[1].store().Remove(self.pb.StoreRequest(name="x"), timeout=5)
        for node in self.nodes:
            error = self.fails(grpc.StatusCode.NOT_FOUND, "ENOTFOUND",
                               node.store().Stat,
                               self.pb.StoreRequest(name="x"), timeout=5)
            self.assertIn('"x"', error.details())

    def fails(self, status, code, call, *args, **kwargs):
        """The error of a unary call, or of a stream read to its end."""
        with self.assertRaises(grpc.RpcError) as caught:
            result = call(*args, **kwargs)
            if not hasattr(result, "SerializeToString"):
                list(result)
        error = caught.exception
        self.assertEqual((error.code(), hedge_error(error)), (status, code),
                         error.details())
        self.assertTrue(error.details())
        self.assertLess(len(error.details()), 600)
        return error

    def test_redirect(self):
        self.write("x", [b"one"])
        _, replies, first = self.open_write("x", self.nodes[1], append=True)
        self.assertEqual(first.redirect.id, self.first.id)
        self.assertEqual(first.redirect.grpc_address, self.first.grpc)
        self.assertEqual(list(replies), [])

    def test_redirect_of_a_reader(self):
        """Only of one that says that it can go there."""
        self.write("x", [b"one"])
        replies = list(self.nodes[1].store().Read(iter([self.pb.ReadRequest(
            open=self.pb.ReadOpen(name="x", redirect=True), credits=8)]),
            timeout=20))
        self.assertEqual(len(replies), 1)
        self.assertFalse(replies[0].opened)
        self.assertEqual(replies[0].redirect.id, self.first.id)
        self.assertEqual(replies[0].redirect.grpc_address, self.first.grpc)
        self.assertEqual(self.parse(self.read_blocks("x", redirect=True)),
                         [b"one"])

    def test_counts_are_checked(self):
        requests, replies, _ = self.open_write("x")
        requests.send(self.records(b"one", b"two"))
        requests.send(self.pb.WriteRequest(commit=self.pb.WriteCommit(
            records=3, bytes=6)))
        requests.close()
        self.fails(grpc.StatusCode.DATA_LOSS, "ECORRUPT", list, replies)
        info = self.store.Stat(self.pb.StoreRequest(name="x"), timeout=5)
        self.assertEqual(info.state, "aborted")

    def test_stream_without_commit(self):
        requests, replies, _ = self.open_write("x")
        requests.send(self.records(b"one"))
        requests.close()
        with self.assertRaises(grpc.RpcError) as caught:
            list(replies)
        self.assertIn("commit", caught.exception.details())
        info = self.store.Stat(self.pb.StoreRequest(name="x"), timeout=5)
        self.assertEqual(info.state, "aborted")

    def test_client_dies_while_writing(self):
        requests, replies, _ = self.open_write("x")
        requests.send(self.records(b"one"))
        replies.cancel()
        wait_until("the store to be aborted", lambda: self.store.Stat(
            self.pb.StoreRequest(name="x"), timeout=5).state == "aborted", 10)

    def test_client_dies_while_reading(self):
        self.write("x", [random_bytes(200_000, i) for i in range(50)])
        for node in self.nodes:
            for _ in range(5):
                requests = Requests(self.pb.ReadRequest(
                    open=self.pb.ReadOpen(name="x"), credits=2))
                replies = node.store().Read(requests, timeout=20)
                next(replies)
                next(replies)
                replies.cancel()
                requests.close()
        wait_until("no readers", lambda: self.store.Stat(
            self.pb.StoreRequest(name="x"), timeout=5).readers == 0, 10)

    def test_reader_that_closes_its_side(self):
        """It gets what it gave credit for; then an error, never an end that
        looks like the end of the data."""
        records = [random_bytes(200_000, i) for i in range(30)]
        self.write("x", records)
        for node in self.nodes:
            replies = []
            with self.assertRaises(grpc.RpcError) as caught:
                for r in node.store().Read(iter([self.pb.ReadRequest(
                        open=self.pb.ReadOpen(name="x"), credits=3)]),
                        timeout=20):
                    replies.append(r)
            self.assertEqual(caught.exception.code(),
                             grpc.StatusCode.CANCELLED)
            self.assertIn("credits", caught.exception.details())
            self.assertEqual(len(replies), 4)
        # All of a store that fits into the window.
        self.write("y", [b"one", b"two"])
        replies = list(self.store.Read(iter([self.pb.ReadRequest(
            open=self.pb.ReadOpen(name="y"), credits=8)]), timeout=20))
        self.assertEqual(self.parse(replies), [b"one", b"two"])

    def test_credits_beyond_the_window(self):
        self.write("x", [random_bytes(200_000, i) for i in range(30)])
        for first, second in ((9, 0), (8, 9), (8, 8), (2 ** 32 - 1, 0)):
            with self.subTest(first=first, second=second):
                requests = Requests(self.pb.ReadRequest(
                    open=self.pb.ReadOpen(name="x"), credits=first))
                if second:
                    requests.send(self.pb.ReadRequest(credits=second))
                    requests.send(self.pb.ReadRequest(credits=second))
                self.fails(grpc.StatusCode.INVALID_ARGUMENT, "EPROTO",
                           self.store.Read, requests, timeout=20)
                requests.close()

    def test_discard_by_credits(self):
        records = [random_bytes(200_000, i) for i in range(30)]
        self.write("x", records)
        replies = self.read_blocks("x", self.nodes[1], discard=True)
        self.assertEqual(self.parse(replies), records)
        wait_until("blocks to be freed", lambda: not self.store.Stat(
            self.pb.StoreRequest(name="x"), timeout=5).tiers, 10)

    def test_blocks_sealed_by_the_client(self):
        """A foreign block with a wrong sum, or cut, is refused."""
        self.write("x", [b"one", b"two", b"three" * 1000])
        sealed = bytearray(self.read_blocks("x")[1].block)
        for name, change in (("sum", lambda b: b.__setitem__(-1, b[-1] ^ 1)),
                             ("header", lambda b: b.__setitem__(20, 9)),
                             ("cut", lambda b: b.__delitem__(slice(-5, None))),
                             ("tiny", lambda b: b.__delitem__(slice(10, None))),
                             ("of another store", lambda b: None)):
            with self.subTest(change=name):
                block = bytearray(sealed)
                change(block)
                requests, replies, _ = self.open_write(f"y {name}")
                requests.send(self.pb.WriteRequest(block=bytes(block)))
                with self.assertRaises(grpc.RpcError) as caught:
                    list(replies)
                requests.close()
                self.assertIn(hedge_error(caught.exception),
                              ("ECORRUPT", "EPROTO"))
                info = self.store.Stat(
                    self.pb.StoreRequest(name=f"y {name}"), timeout=5)
                self.assertEqual((info.state, info.records), ("aborted", 0))

    def seal(self, opened, payload):
        """The first block of this writer, and its digest."""
        head = bytearray(HEADER.pack(
            MAGIC, 1, 0, 0, opened.generation, 0, opened.writer, 1, 0,
            len(payload), len(payload), xxh3(payload), xxh3(payload), 0))
        head[-4:] = struct.pack("<I", xxh3(bytes(head[:-4])) & 0xffffffff)
        return bytes(head) + payload

    def test_bits_flipped_on_the_way_to_the_owner(self):
        """Of a block that is right in all else: in its header, its payload."""
        payload = struct.pack("<I", 5000) + random_bytes(5000)
        for bit in (None, 3, 70, 100, 180, 300, 350, 420, 500, 512, 20000,
                    8 * (64 + 5004) - 1):
            with self.subTest(bit=bit):
                name = f"x {bit}"
                requests, replies, first = self.open_write(name)
                block = bytearray(self.seal(first.opened, payload))
                if bit is not None:
                    block[bit // 8] ^= 1 << bit % 8
                requests.send(self.pb.WriteRequest(block=bytes(block)))
                if bit is None:
                    wait_until("the block to be taken", lambda: self.store.Stat(
                        self.pb.StoreRequest(name=name),
                        timeout=5).records == 1, 10)
                    self.assertEqual(self.first.ctl("sos", "read",
                                                    name).stdout, payload[4:])
                    replies.cancel()
                    requests.close()
                    continue
                requests.close()
                error = self.fails(grpc.StatusCode.DATA_LOSS, "ECORRUPT",
                                   list, replies)
                for text in (f'store "{name}"', "block 0/0", self.first.id):
                    self.assertIn(text, error.details())
                info = self.store.Stat(self.pb.StoreRequest(name=name),
                                       timeout=5)
                self.assertEqual((info.state, info.records), ("aborted", 0))

    def test_bad_opens(self):
        opening = self.pb.WriteOpen
        options = self.pb.StoreOptions
        for name, message in (
                ("nothing", self.pb.WriteRequest()),
                ("records", self.records(b"one")),
                ("no name", self.pb.WriteRequest(open=opening())),
                ("a slash", self.pb.WriteRequest(open=opening(name="a/b"))),
                ("too long", self.pb.WriteRequest(
                    open=opening(name="x" * 4096))),
                ("replicas", self.pb.WriteRequest(open=opening(
                    name="x", options=options(replicas=1000)))),
                ("ttl", self.pb.WriteRequest(open=opening(
                    name="x", options=options(ttl_ms=1)))),
                ("level", self.pb.WriteRequest(open=opening(
                    name="x", options=options(compression=2,
                                              compression_level=-7)))),
                ("compression", self.pb.WriteRequest(open=opening(
                    name="x", options=options(compression=77))))):
            with self.subTest(name):
                with self.assertRaises(grpc.RpcError) as caught:
                    list(self.store.Write(iter([message]), timeout=20))
                error = caught.exception
                self.assertEqual(error.code(),
                                 grpc.StatusCode.INVALID_ARGUMENT,
                                 error.details())
                self.assertTrue(error.details())
        self.assertEqual(
            list(self.store.List(self.pb.ListRequest(), timeout=5).stores), [])

    def test_many_calls_at_once(self):
        """More calls for stores elsewhere than a node has threads."""
        self.write("far", [b"one"], self.nodes[1])
        self.write("near", [b"one"])
        stores = [n.store() for n in self.nodes]
        request = self.pb.StoreRequest

        def one(i):
            store = stores[i % 2]
            if i % 5 == 0:
                return len(store.List(self.pb.ListRequest(), timeout=20).stores)
            try:
                return store.Stat(request(name=("far", "near", "none")[i % 3]),
                                  timeout=20).records
            except grpc.RpcError as e:
                return hedge_error(e)
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            results = list(pool.map(one, range(640)))
        took = time.monotonic() - start
        self.assertEqual(set(results), {1, 2, "ENOTFOUND"})
        self.assertLess(took, 10, "calls have waited for each other")


class Malformed(ForeignTest):
    """Bytes that are no message, on every method there is."""

    METHODS = {
        "Store": (("Write", True), ("Read", True), ("Stat", False),
                  ("List", False), ("Remove", False)),
        "Cluster": (("Members", False), ("WatchMembers", True),
                    ("Leader", False), ("Status", False)),
        "Peer": (("Join", True), ("Announce", False),
                 ("RegisterStore", False), ("UnregisterStore", False),
                 ("FindStore", False), ("Put", True), ("Get", True),
                 ("Drop", False), ("Renew", False), ("LocalStores", False)),
    }
    EMPTY = ("List", "Members", "WatchMembers", "Leader", "Status",
             "LocalStores")

    def send(self, service, method, stream, messages):
        """The status, or None when it is answered."""
        channel = self.nodes[1].channel()
        path = f"/hedge.v1.{service}/{method}"

        def same(b):
            return b
        try:
            if stream:
                call = channel.stream_stream(path, same, same)(
                    iter(messages), timeout=3)
                for _ in call:
                    pass
            else:
                channel.unary_unary(path, same, same)(messages[0], timeout=3)
        except grpc.RpcError as e:
            return e
        return None

    def test_garbage(self):
        rng = random.Random(7)
        texts = [b"", b"\0", b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f",
                 b"\x7a\x80\x80\x80\x80\x10", b"\x7a\x05ab",
                 b"\x0a\x04\x0a\x02\xff\xfe", b"\x08" + b"\x80" * 20]
        texts += [rng.randbytes(rng.randrange(1, 200)) for _ in range(30)]
        answered = refused = 0
        for service, methods in self.METHODS.items():
            for method, stream in methods:
                if method == "WatchMembers":
                    continue  # It answers anything, for ever.
                for text in texts:
                    error = self.send(service, method, stream, [text])
                    if error is None:
                        answered += 1
                        continue
                    refused += 1
                    self.assertNotIn(
                        error.code(), (grpc.StatusCode.UNAVAILABLE,
                                       grpc.StatusCode.DEADLINE_EXCEEDED),
                        (method, text, error.details()))
                    if error.code() != grpc.StatusCode.OK:
                        self.assertTrue(error.details(), (method, text))
        self.assertGreater(refused, answered // 4)

    def test_after_a_good_opening(self):
        """Garbage as the second message of a stream."""
        pb = self.pb
        rng = random.Random(8)
        openings = {
            "Write": pb.WriteRequest(open=pb.WriteOpen(name="x", append=True)),
            "Read": pb.ReadRequest(open=pb.ReadOpen(name="after",
                                                    follow=True)),
        }
        self.write("keep", [b"one"])
        for method, opening in openings.items():
            for _ in range(20):
                text = rng.randbytes(rng.randrange(1, 300))
                self.send("Store", method, True,
                          [opening.SerializeToString(), text])
        for _ in range(20):
            text = rng.randbytes(rng.randrange(1, 300))
            put = pb.PutRequest(request=1, store="y", stream=5,
                                owner=pb.OwnerRef(id="1.2.3.4:5",
                                                  incarnation=9))
            self.send("Peer", "Put", True, [put.SerializeToString(), text])
        self.assertEqual(self.first.ctl("sos", "read", "keep").stdout, b"one")

    def test_a_stranger_does_not_get_in(self):
        """Reports and announcements with lies: the group goes on."""
        pb = self.pb
        before = self.first.status()
        member = pb.Member(id="9.9.9.9:9", incarnation=5,
                           grpc_address="127.0.0.1:9")
        for report in (pb.JoinReport(), pb.JoinReport(self=pb.Member()),
                       pb.JoinReport(self=member, wire_version=99),
                       pb.JoinReport(self=member, wire_version=1,
                                     block_version=1, block_size=4096),
                       pb.JoinReport(self=pb.Member(
                           id="x" * 5000, incarnation=1, grpc_address="y"))):
            for node in self.nodes:
                with self.assertRaises(grpc.RpcError) as caught:
                    list(node.peer().Join(iter([report]), timeout=5))
                self.assertTrue(caught.exception.details())
        # A node of the leader's own name brings its stores.
        leader = next(n for n in self.nodes if n.id == before.leader)
        other = next(n for n in self.nodes if n is not leader)
        self.write("mine", [b"one"], leader)
        report = pb.JoinReport(
            self=pb.Member(id=leader.id, incarnation=2 ** 62,
                           grpc_address="127.0.0.1:9"),
            wire_version=1, block_version=1, block_size=256 * KIB)
        report.stores.add(name="mine", generation=12345)
        for complete in (False, True):
            report.stores_complete = complete
            with self.assertRaises(grpc.RpcError):
                list(leader.peer().Join(iter([report]), timeout=5))
        self.assertEqual(other.ctl("sos", "read", "mine").stdout, b"one")
        # Somebody says that he leads: the engine is asked, not he.
        for node in self.nodes:
            try:
                node.peer().Announce(pb.LeaderReply(
                    id="9.9.9.9:9", token=2 ** 60, lease_ms=10 ** 6,
                    grpc_address="127.0.0.1:9"), timeout=5)
            except grpc.RpcError:
                pass
        time.sleep(1)
        wait_until("the leader to be known", lambda: all(
            n.status().leader == before.leader for n in self.nodes), 10)
        self.shared.wait_members(2)

    def test_messages_over_the_limit(self):
        for service, methods in self.METHODS.items():
            for method, stream in methods:
                error = self.send(service, method, stream,
                                  [b"\x0a\x80\x80\x80\x08"
                                   + b"x" * (16 * MIB)])
                self.assertIsNotNone(error, method)
                self.assertIn(error.code(),
                              (grpc.StatusCode.RESOURCE_EXHAUSTED,
                               grpc.StatusCode.CANCELLED,
                               grpc.StatusCode.INTERNAL), method)

    def test_unknown_methods(self):
        for path in (("Store", "Nothing"), ("Nothing", "At"), ("Peer", "")):
            error = self.send(*path, False, [b""])
            self.assertEqual(error.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_not_grpc_at_all(self):
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000,
                     random_bytes(10_000)):
            for port in (self.first.port, self.first.port + 1):
                with socket.create_connection(("127.0.0.1", port), 5) as s:
                    try:
                        s.sendall(text)
                        s.settimeout(0.5)
                        s.recv(100)
                    except OSError:
                        pass


if __name__ == "__main__":
    main()
