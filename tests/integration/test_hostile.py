"""Every field of every method that server reflection tells of, with values it
was not made for: a status with a text each time, and nothing else happens."""
import collections
import concurrent.futures

import grpc
from google.protobuf import descriptor

from hedge_harness import MIB, SharedTest, hedge_error, main, stubs
from test_generic_grpc import Reflection

Code = grpc.StatusCode
Field = descriptor.FieldDescriptor
INTEGERS = (0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 63 - 1,
            2 ** 64 - 1)
NO_TEXTS = (b"\0", b"witness\0", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80")
TEXTS = (b"", b"/", b"..", b"../../x", b"__hedge/x", b"a b\n", b"x" * 256,
         b"x" * 5000, b"x" * MIB)
# What answers only when something happens, or when its deadline has come.
WAITING = {"Health/Watch", "Cluster/WatchMembers", "Log/Follow", "Locks/Watch",
           "Locks/Acquire", "Log/Put", "Log/PutLarge", "Messages/Send", "Messages/Broadcast",
           "MessagePeer/Deliver", "Hedge/SoSRead", "Hedge/SoSWrite"}
BUSY = {Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}
REFUSALS = {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS,
            Code.FAILED_PRECONDITION, Code.ABORTED, Code.OUT_OF_RANGE,
            Code.DATA_LOSS, Code.CANCELLED, Code.RESOURCE_EXHAUSTED}
# Bytes that are no message, and whether a reader has to see that.
NO_MESSAGES = {"ones": b"\xff" * 9, "field 0": b"\0\0", "group": b"\x9b\x06",
               "end of a group": b"\x0c", "wire type 6": b"\x0e",
               "wire type 7": b"\x0f", "cut": b"\x0a\x05abc",
               "number": b"\x08" + b"\x80" * 12,
               "length": b"\x0a" + b"\xff" * 9 + b"\x01"}


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def packed(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def values(field):
    """(what, bytes, whether they are no message) of a field."""
    n = field.number
    if field.type in (Field.TYPE_FIXED64, Field.TYPE_FIXED32):
        size, wire = ((8, 1) if field.type == Field.TYPE_FIXED64 else (4, 5))
        for v in (0, 1, (1 << 8 * size) - 1):
            yield v, varint(n << 3 | wire) + v.to_bytes(size, "little"), False
        yield "cut", varint(n << 3 | wire) + b"\0", True
    elif field.type in (Field.TYPE_STRING, Field.TYPE_BYTES):
        for v in TEXTS:
            yield v[:20], packed(n, v), False
        for v in NO_TEXTS:
            yield v, packed(n, v), field.type == Field.TYPE_STRING
        if field.label == Field.LABEL_REPEATED:
            yield "a crowd", packed(n, b"x") * 20_000, False
        yield "cut", varint(n << 3 | 2) + b"\x05x", True
    elif field.type == Field.TYPE_MESSAGE:
        yield "a crowd", packed(n, b"") * 5000, False
        for what, data in NO_MESSAGES.items():
            yield what, packed(n, data), True
        for inner in field.message_type.fields:
            if inner.type != Field.TYPE_MESSAGE:
                for what, data, bad in values(inner):
                    yield (inner.name, what), packed(n, data), bad
    else:
        for v in INTEGERS:
            yield v, varint(n << 3) + varint(v), False
        yield "endless", varint(n << 3) + b"\x80" * 11, True


def good_ones():
    """{method: what a well-behaved client begins with}, so that the rest of
    its fields is looked at as well."""
    hedge, log, locks, msg, foreign = (stubs(name)[0] for name in (
        "hedge", "log", "locks", "messages", "hedgeproto"))
    session = locks.LockSession(session=77, lease_ms=2000, holder="h")
    owner = hedge.OwnerRef(id="1.2.3.4:5", incarnation=9)
    put = log.LogPutRequest(puts=[log.LogPut(key=b"hostile", value=b"v")])
    acquire = locks.LockRequest(session=session, request=1, name="hostile",
                                limit=2 ** 31 - 1, wait_ms=50)
    stray = hedge.RegisterRequest(name="witness", owner="9.9.9.9:9",
                                  incarnation=5)
    part = foreign.Payload(meta={"name": "part"}, data=b"x")
    opening = msg.StreamItem(open=msg.StreamOpen(timeout_ms=300))
    return {
        "Store/Write": hedge.WriteRequest(
            open=hedge.WriteOpen(name="hostile", append=True)),
        "Store/Read": hedge.ReadRequest(
            open=hedge.ReadOpen(name="witness"), credits=2),
        "Log/Put": put,
        "Log/PutLarge": log.LogChunk(data=put.SerializeToString()),
        "Log/Get": log.LogGetRequest(key=b"witness"),
        "Log/Query": log.LogQuery(key=b"witness"),
        "Log/Follow": log.LogQuery(key=b"witness", limit=1),
        "Locks/OpenSession": session, "Locks/Renew": session,
        "Locks/Watch": locks.LockWatch(session=77, wait_ms=50),
        "Locks/Acquire": acquire, "Locks/TryAcquire": acquire,
        "Locks/Release": locks.LockToken(name="witness", token=1, session=5),
        "Messages/Send": msg.SendRequest(data=b"x", timeout_ms=300),
        "Messages/Broadcast": msg.BroadcastRequest(data=b"x", timeout_ms=300),
        "Messages/StreamLeader": opening, "Messages/StreamBroadcast": opening,
        "MessagePeer/Deliver": msg.DeliverRequest(kind=1, timeout_ms=300),
        "MessagePeer/Put": msg.DeliverRequest(kind=1, timeout_ms=300, len=5),
        "MessagePeer/Stream": msg.StreamItem(open=msg.StreamOpen(kind=1)),
        "LocksRelay/Relay": locks.LockCall(
            id=1, op=2, name="hostile", holder="h", limit=5, permits=1,
            session=77, request=9, lease_ms=2000, wait_ms=50),
        "Peer/RegisterStore": stray, "Peer/UnregisterStore": stray,
        "Peer/Put": hedge.PutRequest(request=1, store="y", stream=5,
                                     owner=owner),
        "Peer/Drop": hedge.DropRequest(owner=owner, generation=1,
                                       one_block=True),
        "Peer/Renew": hedge.RenewRequest(owner=owner),
        "Hedge/SoSWrite": part, "Hedge/SoSRead": part,
        "Hedge/SoSClose": part,
    }


Job = collections.namedtuple("Job", "path what messages broken")


class Hostile(SharedTest):
    """From a node that does not lead, so that what it passes on is seen."""

    size = 2
    options = {"mem_limit": "32M", "disk_limit": "64M",
               "sync_interval": "200ms"}

    def setUp(self):
        super().setUp()
        self.victim, = self.shared.others()
        self.reflection = Reflection(self.victim.channel(), "v1")

    def methods(self):
        """(path, short name, input type)"""
        for service in self.reflection.services():
            self.reflection.load(service)
            for m in self.reflection.pool.FindServiceByName(service).methods:
                yield (f"/{service}/{m.name}",
                       f"{service.split('.')[-1]}/{m.name}", m.input_type)

    def jobs(self):
        good = good_ones()
        for path, name, kind in self.methods():
            yield Job(path, "no message", [], False)
            first = good.get(name)
            starts = [b""] + ([first.SerializeToString()] if first else [])
            for start in starts:
                for what, data in NO_MESSAGES.items():
                    # Field 1 may be one that "cut" or "length" fits.
                    yield Job(path, what, [start + data], True)
                for field in kind.fields:
                    for what, data, broken in values(field):
                        yield Job(path, (field.name, what), [start + data],
                                  broken)
            if first:
                for what, data in NO_MESSAGES.items():
                    yield Job(path, ("then", what), [starts[1], data], False)
                yield Job(path, "twice", [starts[1]] * 2, False)

    @staticmethod
    def same(data):
        return data

    def send(self, job, timeout=1.5):
        call = self.victim.channel().stream_stream(
            job.path, self.same, self.same)(iter(job.messages),
                                            timeout=timeout)
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            return job, error
        return job, None

    def check(self, job, error):
        """What is wrong with the answer; None: nothing."""
        name = "/".join(job.path.split(".")[-1].split("/")[-2:])
        if error is None:
            return "it was taken" if job.broken else None
        if error.code() == Code.DEADLINE_EXCEEDED and not hedge_error(error):
            return (None if name in WAITING and not job.broken
                    else "no answer")
        allowed = REFUSALS | (BUSY if name in WAITING else set())
        if not (error.code() in allowed
                or hedge_error(error) in ("EHANDLER", "EUNAVAILABLE")
                or not job.broken and hedge_error(error) == "ETIMEDOUT"
                or name in WAITING and hedge_error(error) == "ENOLEADER"):
            return "not a status of a bad request"
        if job.broken and hedge_error(error) not in (
                "EPROTO", "EINVAL", "EHANDLER", "ETOOBIG", "ENOTLEADER"):
            return "not a status of bytes that are no message"
        text = error.details() or ""
        return (None if 0 < len(text) < 600 and text.isprintable()
                and hedge_error(error) else "no text, or no error's name")

    def witnesses(self):
        """What nobody may have touched."""
        ctl = self.first.ctl
        held = ctl("sem", "ls", "witness", json_output=True).object()
        return (
            ctl("sos", "read", "witness").stdout,
            ctl("get", "witness", "--all", json_output=True).out,
            [h["token"] for h in held["holders"]], held["limit"],
            [(m["id"], m["leader"]) for m in
             ctl("members", json_output=True).objects()],
            ctl("leader", json_output=True).object()["token"])

    def test_every_field_of_every_method(self):
        ctl = self.first.ctl
        self.assert_done(ctl("sos", "write", "witness", data=b"one\ntwo\n"))
        for i in range(3):
            self.assert_done(ctl("put", "witness", f"v{i}"))
        self.assert_done(ctl("sem", "acquire", "witness", "--limit", 3,
                             "--ttl", "10m"))
        before = self.witnesses()
        jobs = list(self.jobs())
        self.assertGreater(len(jobs), 4000)
        wrong = collections.Counter()
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            for job, error in pool.map(self.send, jobs):
                what = self.check(job, error)
                if what is not None:
                    wrong[what, job.path, str(job.what)[:60],
                          str(error and (error.code().name,
                                         hedge_error(error),
                                         error.details()))[:160]] += 1
        self.assertFalse(wrong, "\n".join(map(str, sorted(wrong))))
        self.assertEqual(self.witnesses(), before)
        for node in self.nodes:
            self.assertEqual(
                node.ctl("send", "hello").out,
                f"{self.shared.leader().id}: hello")

    def test_more_than_a_message(self):
        """64 MiB in one: more than gRPC takes here."""
        most = b"\x0a" + varint(64 * MIB) + bytes(64 * MIB)
        for path, _, _ in self.methods():
            if path.endswith(("/Stat", "/Put", "/Send", "/SoSWrite",
                              "/Acquire", "/Check")):
                _, error = self.send(Job(path, "64 MiB", [most], True), 20)
                self.assertIsNotNone(error, path)
                self.assertIn(error.code(), (
                    Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.CANCELLED,
                    Code.FAILED_PRECONDITION), path)
                self.assertTrue(error.details(), path)
        self.assertEqual(self.victim.ctl("leader").status, 0)


if __name__ == "__main__":
    main()
