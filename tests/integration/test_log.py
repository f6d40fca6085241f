"""The log: put, get, log of hedgectl, a gRPC client that is not ours, and what
becomes of acknowledged puts when nodes and leaders go."""
import base64
import concurrent.futures
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import grpc

from hedge_harness import (MIB, DaemonTest, SharedTest, finish,
                           hedge_error, hedgectl_start, main, random_bytes,
                           stubs, wait_until)

REVISION_FUTURE = 1 << 40


def pb():
    return stubs("log")[0]


def log_stub(node):
    return stubs("log")[1].LogStub(node.channel())


def put_grpc(node, key, value=b"v", timeout=20, **fields):
    reply = log_stub(node).Put(pb().LogPutRequest(puts=[pb().LogPut(
        key=key, value=value, **fields)]), timeout=timeout)
    return reply.results[0]


def query_grpc(node, timeout=30, follow=False, **fields):
    """The entries; a value that comes in pieces is put together."""
    stub = log_stub(node)
    pages = (stub.Follow if follow else stub.Query)(
        pb().LogQuery(**fields), timeout=timeout)
    open_entry = None
    for page in pages:
        if open_entry is not None:
            open_entry.value += page.rest
            if not page.partial:
                yield open_entry
                open_entry = None
            continue
        entries = list(page.entries)
        if page.partial:
            open_entry = entries.pop()
        yield from entries


class LogTest(SharedTest):
    size = 3
    options = {"lease": "3s"}

    def put(self, *args, node=None, **kwargs):
        return self.assert_done((node or self.first).ctl(
            "put", *args, json_output=True, **kwargs)).object()

    def key(self):
        """A key of this test alone."""
        return f"{self.id().rsplit('.', 1)[1]}/"


class Commands(LogTest):
    def test_put_and_get(self):
        k = self.key() + "a"
        first = self.put(k, "one")
        second = self.put(k, "two", node=self.nodes[1])
        self.assertGreater(second["revision"], first["revision"])
        self.assertGreaterEqual(second["timestamp"], first["timestamp"])
        for node in self.nodes:
            got = self.assert_done(node.ctl("get", k))
            self.assertEqual(got.stdout, b"two")
            self.assertEqual(got.stderr, b"")
        plain = self.assert_done(self.first.ctl("put", k, "three"))
        self.assertEqual(int(plain.out), second["revision"] + 1)

    def test_forms_of_get(self):
        k = self.key() + "a"
        revisions = [self.put(k, f"v{i}")["revision"] for i in range(5)]
        times = [o["timestamp"] for o in self.assert_done(self.first.ctl(
            "get", k, "--all", json_output=True)).objects()]

        def values(*args, node=self.nodes[2]):
            return [o["value"] for o in self.assert_done(node.ctl(
                "get", k, *args, json_output=True)).objects()]
        self.assertEqual(values(), ["v4"])
        self.assertEqual(values("--oldest"), ["v0"])
        self.assertEqual(values("--limit", 2), ["v4", "v3"])
        self.assertEqual(values("--limit", 99), [f"v{4 - i}" for i in range(5)])
        self.assertEqual(values("--all"), [f"v{4 - i}" for i in range(5)])
        self.assertEqual(values("--at-rev", revisions[2]), ["v2"])
        self.assertEqual(values("--at-rev", revisions[2], "--limit", 2),
                         ["v2", "v1"])
        self.assertEqual(values("--at-time", times[0]), ["v4"])
        self.assertEqual(values("--at-time", "0s"), ["v4"])
        self.assertEqual(self.first.ctl("get", k, "--at-time", "1h").status, 3)
        none = self.assert_status(self.first.ctl("get", k + "x"), 3)
        self.assertIn(f'there is no version of "{k}x"', none.err)
        table = self.assert_done(self.first.ctl("get", k, "--all")).out
        self.assertEqual(len(table.splitlines()), 6)
        self.assertRegex(table.splitlines()[1], rf"^ *{revisions[4]}  \d{{4}}-")
        self.assertEqual(
            self.assert_done(self.first.ctl("get", k, "--oldest")).stdout,
            b"v0")
        self.assertEqual(
            self.assert_done(self.first.ctl("get", k, "--limit", 1)).stdout,
            b"v4")

    def test_json_of_an_entry(self):
        k = self.key() + "ü"
        put = self.put(k, "wert €")
        got = self.assert_done(self.first.ctl(
            "get", k, json_output=True)).object()
        leader = self.assert_done(self.first.ctl(
            "leader", json_output=True)).object()
        self.assertEqual(got, {
            "revision": put["revision"], "timestamp": put["timestamp"],
            "key": k, "key_base64": base64.b64encode(k.encode()).decode(),
            "value": "wert €",
            "value_base64": base64.b64encode("wert €".encode()).decode(),
            "leader": leader["id"], "token": leader["token"]})

    def test_binary_values(self):
        for i, value in enumerate([b"", b"\0", b"a\0b", b"\xff\xfe", b"\n",
                                   b"line\n", b"\"\\\x01\x7f",
                                   random_bytes(100000)]):
            k = f"{self.key()}{i}"
            self.put(k, "-", data=value)
            self.assertEqual(self.assert_done(self.nodes[1].ctl(
                "get", k)).stdout, value)
            o = self.assert_done(self.nodes[2].ctl(
                "get", k, json_output=True)).object()
            self.assertEqual(base64.b64decode(o["value_base64"]), value)
            try:
                text = value.decode()
            except UnicodeDecodeError:
                text = None
            self.assertEqual(o["value"], text)

    def test_large_values(self):
        for size in (MIB, MIB + 1, 8 * MIB - 100, 8 * MIB, 16 * MIB):
            value = random_bytes(size, seed=size)
            k = f"{self.key()}{size}"
            self.put(k, "-", data=value, node=self.nodes[size % 3])
            for node in self.nodes:
                self.assertTrue(self.assert_done(
                    node.ctl("get", k)).stdout == value, size)
        result = self.assert_status(self.first.ctl(
            "put", self.key() + "x", "-", data=bytes(16 * MIB + 1)), 2)
        self.assertIn("limit of 16.0 MiB", result.err)
        sizes = [len(e.value) for e in query_grpc(
            self.nodes[1], key=self.key().encode(), prefix=True)]
        self.assertEqual(sizes, [MIB, MIB + 1, 8 * MIB - 100, 8 * MIB,
                                 16 * MIB])

    def test_no_append(self):
        k = self.key() + "a"
        self.put(k, "one")
        hidden = self.put(k, "two")
        self.put(k, "three", "--no-append")

        def values(*args):
            return [o["value"] for o in self.assert_done(self.nodes[1].ctl(
                *args, json_output=True)).objects()]
        self.assertEqual(values("get", k, "--all"), ["three", "one"])
        self.assertEqual(values("log", "--prefix", k), ["one", "three"])
        self.assertEqual(values("get", k, "--at-rev", hidden["revision"]),
                         ["one"])
        self.assertEqual(values("log", "--prefix", k, "--at-rev",
                                hidden["revision"]), ["one"])
        self.assertEqual(values("log", "--prefix", k, "--from-rev",
                                hidden["revision"]), ["three"])
        other = self.key() + "b"
        self.put(other, "x", "--no-append")  # Nothing to hide.
        self.assertEqual(values("get", other, "--all"), ["x"])

    def test_log(self):
        k = self.key()
        revisions = [self.put(f"{k}{i % 3}", i)["revision"] for i in range(9)]
        self.put("other", "x")

        def log(*args, node=self.nodes[1]):
            return [int(o["value"]) for o in self.assert_done(node.ctl(
                "log", "--prefix", k, *args, json_output=True)).objects()]
        for node in self.nodes:
            self.assertEqual(log(node=node), list(range(9)))
        self.assertEqual(log("--limit", 4), [0, 1, 2, 3])
        self.assertEqual(log("--from-rev", revisions[5]), [5, 6, 7, 8])
        self.assertEqual(log("--at-rev", revisions[5]), [0, 1, 2, 3, 4, 5])
        self.assertEqual(log("--since", "1h"), list(range(9)))
        self.assertEqual(log("--until", "1h"), [])
        self.assertEqual(log("--since", "1970-01-01T00:00:01Z", "--until",
                             "2999-12-31T23:59:59+02:00"), list(range(9)))
        self.assertEqual(log("--latest"), [6, 7, 8])
        self.assertEqual(log("--latest", "--at-rev", revisions[4]), [3, 4, 2])
        lines = self.assert_done(self.first.ctl("log", "--prefix", k)).out
        self.assertEqual(len(lines.splitlines()), 9)
        self.assertRegex(lines.splitlines()[0], rf"^{revisions[0]}  .*Z  "
                         rf"{k}0  0$")

    def test_usage(self):
        for args in (["put", "k"], ["get"], ["get", "k", "--limit", "0"],
                     ["get", "k", "--limit", "-1"],
                     ["get", "k", "--limit", str(1 << 31)],
                     ["get", "k", "--limit", "1", "--all"],
                     ["get", "k", "--at-rev", "0"],
                     ["get", "k", "--at-rev", "1", "--at-time", "1s"],
                     ["get", "k", "--at-time", "yesterday"],
                     ["get", "k", "--at-time", "2024-02-31T00:00:00Z"],
                     ["get", "k", "--at-time", "2024-02-01 25:00:00Z"],
                     ["log", "--since", "5"], ["log", "--limit", "0"],
                     ["log", "--follow", "--at-rev", "1"],
                     ["log", "compact"], ["log", "compact", "--before", "0"],
                     ["log", "compact", "--before", "x"],
                     ["log", "compact", "--before", "1", "--keep", "0"],
                     ["log", "nonsense"]):
            self.assert_status(self.first.ctl(*args), 2)

    def test_bad_input(self):
        for args, text in (
                (["put", "", "v"], "key of 0 bytes"),
                (["put", "k" * 501, "v"], "key of 501 bytes"),
                (["put", "__hedge/x", "v"], "__hedge/"),
                (["get", "k", "--at-rev", str(REVISION_FUTURE)], "future"),
                (["log", "--from-rev", str(REVISION_FUTURE)], "future"),
                (["log", "compact", "--before", str(REVISION_FUTURE)],
                 "future"),
                (["log", "compact", "--before", "2999-01-01T00:00:00Z"],
                 "future")):
            result = self.assert_status(self.first.ctl(*args), 2)
            self.assertIn(text, result.err)
        self.put("k" * 500, "v")
        self.assert_status(self.first.ctl("get", "no such key"), 3)
        self.assertEqual(self.first.ctl("get", "no such key").stdout, b"")
        self.assert_status(self.first.ctl("get", "__hedge/x"), 3)

    def test_follow(self):
        k = self.key()
        self.put(k + "before", 0)
        follower = hedgectl_start("-o", "json", "log", "--prefix", k,
                                  "--follow", node=self.nodes[1])
        lines = []
        reader = threading.Thread(
            target=lambda: lines.extend(iter(follower.stdout.readline, b"")),
            daemon=True)
        reader.start()
        for i in range(1, 20):
            self.put(f"{k}{i}", i, node=self.nodes[i % 3])
            wait_until(f"line {i}", lambda: len(lines) == i + 1, 5)
        follower.send_signal(signal.SIGTERM)
        reader.join(10)
        finish(follower)
        values = [int(json.loads(line)["value"]) for line in lines]
        self.assertEqual(values, list(range(20)))

    def test_export_import(self):
        k = self.key().encode()
        rng = random.Random(3)
        pairs = [(k + rng.randbytes(rng.randrange(1, 40)),
                  rng.randbytes(rng.choice((0, 1, 10, 1000))))
                 for _ in range(300)]
        pairs += [(k + "text é \U0001f600".encode(), b"\"quoted\"\\\n\0"),
                  (k + b"\0\0\xff\0", "\u2028".encode())]
        pairs.append((k + b"large", rng.randbytes(2 * MIB)))
        stub = log_stub(self.first)
        for key, value in pairs:
            stub.Put(pb().LogPutRequest(puts=[pb().LogPut(
                key=key, value=value)]), timeout=10)
        exported = self.assert_done(self.nodes[1].ctl(
            "log", "--prefix", self.key(), json_output=True)).stdout
        self.assertEqual(len(exported.splitlines()), len(pairs))
        last = json.loads(exported.splitlines()[-1])["revision"]
        result = self.assert_done(self.nodes[2].ctl(
            "log", "import", data=exported, json_output=True))
        self.assertEqual(result.object(), {"imported": len(pairs)})
        again = list(query_grpc(self.first, key=k, prefix=True,
                                from_revision=last + 1))
        self.assertEqual([(e.key, e.value) for e in again], pairs)

    def test_import_lines(self):
        k = self.key()
        lines = [json.dumps({"key": k + "a", "value": "1"}),
                 "", "  ",
                 json.dumps({"key": k + "b", "value_base64": "AP8=",
                             "revision": 7, "x": [1, {"y": None}], "z": -1.5}),
                 json.dumps({"key": k + "c\u0000", "value": "\u0000"}),
                 "{\"key\":\"%sd\",\"value\":\"\\ud83d\\ude00\"}" % k]
        self.assert_done(self.first.ctl(
            "log", "import", data="\n".join(lines).encode()))
        got = {e.key: e.value for e in query_grpc(
            self.first, key=k.encode(), prefix=True)}
        self.assertEqual(got, {
            (k + "a").encode(): b"1", (k + "b").encode(): b"\0\xff",
            (k + "c\0").encode(): b"\0",
            (k + "d").encode(): "\U0001f600".encode()})

    def test_import_errors(self):
        k = self.key()
        good = json.dumps({"key": k + "good", "value": "1"})
        for bad, text in (
                ("nonsense", "JSON object"), ("[1]", "JSON object"),
                ("{\"key\":\"a\"}", "neither \"value\""),
                ("{\"value\":\"a\"}", "neither \"key\""),
                ("{\"key\":\"a\",\"value\":1}", "string was expected"),
                ("{\"key\":\"a\",\"value\":null}", "neither \"value\""),
                ("{\"key\":\"a\",\"value_base64\":\"!\"}", "base64"),
                ("{\"key\":\"a\",\"value_base64\":\"AB==\"}", "base64"),
                ("{\"key\":\"a\",\"value\":\"b\",\"value_base64\":\"AA==\"}",
                 "differ"),
                ("{\"key\":\"a\",\"value\":\"b\"", "no end"),
                ("{\"key\":\"a\",\"value\":\"b\"} x", "behind"),
                ("{\"key\":\"a\",\"value\":\"\\ud800\"}", "surrogate"),
                ("{\"key\":\"a\",\"value\":\"\\x\"}", "escape"),
                ("{\"key\":\"a\",\"key\":\"b\",\"value\":\"\"}", "twice"),
                ("{\"key\":\"a\",\"value\":\"v\",\"x\":" + "[" * 100,
                 "deep"),
                (b"{\"key\":\"a\",\"value\":\"\xff\"}", "UTF-8")):
            bad = bad if isinstance(bad, bytes) else bad.encode()
            data = b"\n".join([good.encode(), b"", bad, good.encode()])
            result = self.assert_status(self.first.ctl(
                "log", "import", data=data), 2)
            self.assertIn("line 3: ", result.err)
            self.assertIn(text, result.err)
            self.assertIn("1 imported", result.out)
        result = self.assert_status(self.first.ctl(
            "log", "import", data=json.dumps(
                {"key": "__hedge/x", "value": ""}).encode()), 2)
        self.assertIn("__hedge/", result.err)

    def test_compact(self):
        k = self.key()
        revisions = [self.put(k + "a", i)["revision"] for i in range(6)]
        self.put(k + "b", "x")

        def values(*args, node=self.nodes[1]):
            return [o["value"] for o in self.assert_done(node.ctl(
                "log", "--prefix", k, *args, json_output=True)).objects()]
        result = self.assert_done(self.nodes[2].ctl(
            "log", "compact", "--before", revisions[3], json_output=True))
        self.assertGreaterEqual(result.object()["removed"], 3)
        self.assertEqual(values(), ["3", "4", "5", "x"])
        for args in (["get", k + "a", "--at-rev", revisions[2]],
                     ["log", "--from-rev", revisions[2]],
                     ["log", "--at-rev", revisions[2]]):
            result = self.assert_status(self.first.ctl(*args), 3)
            self.assertIn(f"the oldest revision is {revisions[3]}", result.err)
        self.assertEqual(values("--from-rev", revisions[3]),
                         ["3", "4", "5", "x"])
        self.assert_done(self.first.ctl("log", "compact", "--before", "0s",
                                        "--keep", 2))
        self.assertEqual(values(), ["4", "5", "x"])
        self.assertEqual(self.assert_done(self.first.ctl(
            "log", "compact", "--before", "0s")).out, "1 removed\n")
        self.assertEqual(values(), ["5", "x"])


class Foreign(LogTest):
    """Python's gRPC."""

    def assert_refused(self, call, status, name, text=""):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), status,
                         caught.exception.details())
        self.assertEqual(hedge_error(caught.exception), name)
        self.assertIn(text, caught.exception.details())

    def test_put_get(self):
        k = self.key().encode()
        reply = log_stub(self.nodes[1]).Put(pb().LogPutRequest(puts=[
            pb().LogPut(key=k, value=bytes([i])) for i in range(5)]),
            timeout=10)
        revisions = [r.revision for r in reply.results]
        self.assertEqual(revisions, list(range(revisions[0],
                                               revisions[0] + 5)))
        stub = log_stub(self.nodes[2])

        def get(**fields):
            return [e.value for e in stub.Get(pb().LogGetRequest(
                key=k, **fields), timeout=10).entries]
        self.assertEqual(get(), [b"\4"])
        self.assertEqual(get(limit=-1), [bytes([4 - i]) for i in range(5)])
        self.assertEqual(get(limit=-2), [b"\0"])
        self.assertEqual(get(limit=2), [b"\4", b"\3"])
        self.assertEqual(get(at_revision=revisions[1]), [b"\1"])
        self.assertEqual(get(at_time_ms=1 << 50), [b"\4"])
        entry = stub.Get(pb().LogGetRequest(key=k), timeout=10).entries[0]
        self.assertEqual(entry.key, k)
        self.assertEqual(entry.revision, revisions[4])
        self.assertLess(abs(entry.timestamp_ms / 1000 - time.time()), 60)

    def test_bad_input(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        stub = log_stub(self.first)
        m = pb()

        def put(**fields):
            return lambda: stub.Put(m.LogPutRequest(puts=[m.LogPut(**fields)]),
                                    timeout=10)

        def get(**fields):
            return lambda: stub.Get(m.LogGetRequest(**fields), timeout=10)

        def query(**fields):
            return lambda: list(stub.Query(m.LogQuery(**fields), timeout=10))
        for call in (put(key=b""), put(key=b"k" * 501),
                     put(key=b"a" + b"\0" * 250), put(key=b"\0x"),
                     put(key=b"__hedge/x"), put(key=b"k", request=b"short"),
                     lambda: stub.Put(m.LogPutRequest(), timeout=10),
                     lambda: stub.Put(m.LogPutRequest(
                         puts=[m.LogPut(key=b"k")] * 4097), timeout=10),
                     get(key=b""), get(key=b"k", limit=-3),
                     get(key=b"k", limit=1 << 31),
                     get(key=b"k", limit=-(1 << 63)),
                     get(key=b"k", at_revision=REVISION_FUTURE),
                     get(key=b"__hedge/x"), get(key=b"k" * 501),
                     query(limit=1 << 31), query(at_revision=REVISION_FUTURE),
                     query(from_revision=REVISION_FUTURE),
                     query(latest=True, newest=True), query(key=b"k" * 501),
                     query(resume=b"x"), query(resume=b"x" * 26),
                     query(resume=b"x" * 10000),
                     query(since_ms=2, until_ms=1),
                     lambda: list(stub.Follow(m.LogQuery(newest=True),
                                              timeout=10)),
                     lambda: stub.Compact(m.LogCompactRequest(), timeout=10),
                     lambda: stub.Compact(m.LogCompactRequest(
                         before_revision=1, before_ms=1), timeout=10),
                     lambda: stub.Compact(m.LogCompactRequest(
                         before_ms=1 << 62), timeout=10)):
            self.assert_refused(call, invalid, "EINVAL")
        self.assert_refused(get(key=b"no such key"),
                            grpc.StatusCode.NOT_FOUND, "ENOTFOUND")
        channel = self.first.channel()
        for method in ("Put", "Get", "Compact"):
            raw = channel.unary_unary(f"/hedge.v1.Log/{method}")
            self.assert_refused(lambda: raw(b"\xff\xff\xff", timeout=10),
                                invalid, "EPROTO")
        raw = channel.unary_stream("/hedge.v1.Log/Query")
        self.assert_refused(lambda: list(raw(b"\xff\xff", timeout=10)),
                            invalid, "EPROTO")
        raw = channel.stream_stream("/hedge.v1.Log/Query")
        self.assert_refused(lambda: list(raw(iter([]), timeout=10)),
                            invalid, "EPROTO")

    def test_get_of_large_values(self):
        k = self.key().encode()
        values = [b"s", random_bytes(MIB), b"t", random_bytes(MIB // 10), b"u"]
        for v in values:
            put_grpc(self.first, k, v)
        stub = log_stub(self.nodes[2])

        def get(limit):
            return [e.value for e in stub.Get(pb().LogGetRequest(
                key=k, limit=limit), timeout=10).entries]
        self.assertEqual(get(-1), values[::-1])
        self.assertEqual(get(2), [b"u", values[3]])
        put_grpc(self.first, k, random_bytes(7 * MIB))
        self.assertEqual(len(get(0)[0]), 7 * MIB)
        for _ in range(10):  # What they take of the budget comes back.
            self.assertEqual(len(get(1)[0]), 7 * MIB)
        self.assert_refused(lambda: get(-1), grpc.StatusCode.INVALID_ARGUMENT,
                            "ETOOBIG")

    def test_many_large_gets_at_once(self):
        """Who waits for room for an answer is not who sends those that take
        it up."""
        k = self.key().encode()
        value = random_bytes(7 * MIB)
        put_grpc(self.first, k, value)
        stub = log_stub(self.first)
        answers = [stub.Get.future(pb().LogGetRequest(key=k), timeout=60)
                   for _ in range(12)]
        for answer in answers:
            self.assertEqual(answer.result().entries[0].value, value)

    def test_large_put_in_pieces(self):
        k = self.key().encode()
        request = pb().LogPutRequest(puts=[
            pb().LogPut(key=k + b"%d" % i, value=random_bytes(3 * MIB, seed=i))
            for i in range(4)]).SerializeToString()
        for node in self.nodes:
            replies = list(log_stub(node).PutLarge(
                (pb().LogChunk(data=request[at:at + 700001])
                 for at in range(0, len(request), 700001)), timeout=30))
            self.assertEqual(len(replies), 1)
            self.assertEqual(len(replies[0].results), 4)
        got = list(query_grpc(self.first, key=k, prefix=True, latest=True))
        self.assertEqual([e.value for e in got],
                         [random_bytes(3 * MIB, seed=i) for i in range(4)])
        # One message has no room for it.
        self.assert_refused(
            lambda: log_stub(self.first).Put(pb().LogPutRequest.FromString(
                request), timeout=10),
            grpc.StatusCode.RESOURCE_EXHAUSTED, None)
        self.assert_refused(
            lambda: list(log_stub(self.first).PutLarge(
                iter([pb().LogChunk(data=b"\xff\xff")]), timeout=10)),
            grpc.StatusCode.INVALID_ARGUMENT, "EPROTO")
        chunk = pb().LogChunk(data=bytes(4 * MIB))
        self.assert_refused(
            lambda: list(log_stub(self.first).PutLarge(
                iter([chunk] * 6), timeout=10)),
            grpc.StatusCode.INVALID_ARGUMENT, "ETOOBIG")
        value = pb().LogPutRequest(puts=[pb().LogPut(
            key=k, value=bytes(9 * MIB))]).SerializeToString()
        list(log_stub(self.first).PutLarge(
            (pb().LogChunk(data=value[at:at + MIB])
             for at in range(0, len(value), MIB)), timeout=30))
        self.assert_refused(
            lambda: log_stub(self.first).Get(pb().LogGetRequest(key=k),
                                             timeout=10),
            grpc.StatusCode.INVALID_ARGUMENT, "ETOOBIG", "Query")

    def test_request_ids(self):
        k = self.key().encode()
        request = os.urandom(16)
        first = put_grpc(self.first, k, b"one", request=request)
        self.assertFalse(first.repeated)
        for node in self.nodes:
            again = put_grpc(node, k, b"one", request=request)
            self.assertTrue(again.repeated)
            self.assertEqual(again.revision, first.revision)
            self.assertEqual(again.timestamp_ms, first.timestamp_ms)
        self.assertEqual(len(list(query_grpc(self.first, key=k))), 1)

    def test_pages_that_resume(self):
        k = self.key().encode()
        stub = log_stub(self.first)
        for i in range(0, 100, 10):
            stub.Put(pb().LogPutRequest(puts=[
                pb().LogPut(key=k + b"%02d" % ((i + j) * 37 % 50),
                            value=b"%d" % (i + j)) for j in range(10)]),
                timeout=10)
        for fields in ({"prefix": True}, {"prefix": True, "newest": True},
                       {"prefix": True, "latest": True}):
            whole = [e.value for e in query_grpc(self.first, key=k, **fields)]
            self.assertEqual(len(whole), 50 if "latest" in fields else 100)
            pages, resume = [], b""
            for n in range(1000):
                node = self.nodes[n % 3]  # Any node goes on.
                query = pb().LogQuery(key=k, limit=7, resume=resume, **fields)
                entries = []
                for page in log_stub(node).Query(query, timeout=10):
                    entries += page.entries
                    resume = page.resume
                if not entries:
                    break
                if n == 3:  # Later puts are not part of it.
                    put_grpc(node, k + b"00", b"later", no_append=True)
                pages += [e.value for e in entries]
            self.assertEqual(pages, whole, fields)

    def test_concurrent_puts(self):
        k = self.key().encode()

        def puts(n):
            stub = log_stub(self.nodes[n % 3])
            return [stub.Put(pb().LogPutRequest(puts=[pb().LogPut(
                key=k + b"%d" % n, value=b"%d" % i)]),
                timeout=30).results[0].revision for i in range(20)]
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            revisions = list(pool.map(puts, range(24)))
        for mine in revisions:
            self.assertEqual(mine, sorted(mine))
        everything = sorted(r for mine in revisions for r in mine)
        self.assertEqual(len(set(everything)), 24 * 20)
        entries = list(query_grpc(self.nodes[1], key=k, prefix=True))
        self.assertEqual([e.revision for e in entries], everything)
        for n in range(24):
            self.assertEqual([e.value for e in entries
                              if e.key == k + b"%d" % n],
                             [b"%d" % i for i in range(20)])

    def test_reads_see_acknowledged_puts(self):
        k = self.key().encode()
        for i in range(60):
            put_grpc(self.nodes[i % 3], k, b"%d" % i)
            entry = log_stub(self.nodes[(i + 1) % 3]).Get(
                pb().LogGetRequest(key=k), timeout=10).entries[0]
            self.assertEqual(entry.value, b"%d" % i)

    def test_follow_ends_with_its_limit(self):
        k = self.key().encode()
        put_grpc(self.first, k, b"0")
        got = query_grpc(self.nodes[1], follow=True, key=k, limit=3)
        self.assertEqual(next(got).value, b"0")
        put_grpc(self.first, k, b"1")
        self.assertEqual(next(got).value, b"1")
        put_grpc(self.nodes[2], k, b"2")
        self.assertEqual(next(got).value, b"2")
        self.assertEqual(list(got), [])

    def test_many_followers_hold_nothing(self):
        """Those who wait for news take nothing from those who put and read."""
        k = self.key().encode()
        stub, m = log_stub(self.first), pb()
        put_grpc(self.first, k + b"large", random_bytes(15 * MIB // 2))
        followers = [stub.Follow(m.LogQuery(key=k + b"x", prefix=True),
                                 timeout=60) for _ in range(200)]
        for f in followers:
            self.assertEqual(len(next(f).entries), 0)
        put_grpc(self.first, k + b"x", b"v")
        self.assertEqual(len(next(query_grpc(
            self.first, key=k + b"large")).value), 15 * MIB // 2)
        for f in followers:
            while not next(f).entries:
                pass
            f.cancel()

    def test_slow_reader_holds_nothing(self):
        """A client that stops reading holds no transaction: pages go on being
        used again."""
        k = self.key().encode()
        value = random_bytes(60000)
        stub = log_stub(self.first)
        for i in range(200):
            stub.Put(pb().LogPutRequest(puts=[pb().LogPut(
                key=k, value=value)]), timeout=10)
        slow = log_stub(self.nodes[1]).Query(pb().LogQuery(key=k), timeout=60)
        seen = len(next(slow).entries)
        data = os.path.join(self.shared_dir, "engine", "log", "data.mdb")
        self.first.ctl("log", "compact", "--before", "0s")
        for _ in range(50):
            put_grpc(self.first, k, value, no_append=True)
        before = os.stat(data).st_blocks * 512
        self.first.ctl("log", "compact", "--before", "0s")
        for _ in range(100):
            put_grpc(self.first, k + b"x", value)
        self.assertLess(os.stat(data).st_blocks * 512, before + 4 * MIB)
        seen += sum(len(p.entries) for p in slow)
        self.assertLessEqual(seen, 200)


class HiddenVersions(DaemonTest):
    """A key with more hidden versions than a look at the log goes over."""
    n = 33 * 4096

    def setUp(self):
        super().setUp()
        self.nodes = self.cluster(2).nodes
        stub, m = log_stub(self.nodes[0]), pb()
        self.first = put_grpc(self.nodes[0], b"k", b"first").revision
        put_grpc(self.nodes[0], b"k", b"to be hidden")
        request = m.LogPutRequest(puts=[
            m.LogPut(key=b"k", value=b"v", no_append=True)] * 4096)
        for _ in range(self.n // 4096):
            self.last = stub.Put(request, timeout=60).results[-1].revision
        self.assertGreater(self.last - self.first, 131072)

    def get(self, node, **fields):
        return [e.revision for e in log_stub(node).Get(
            pb().LogGetRequest(key=b"k", **fields), timeout=60).entries]

    def test_all_ways_to_ask(self):
        first, last, middle = self.first, self.last, self.last - 1
        for node in self.nodes:
            for want, fields in (
                    ([last], {}), ([last, first], {"limit": -1}),
                    ([first], {"limit": -2}), ([last], {"limit": 1}),
                    ([last, first], {"limit": 2}),
                    ([last, first], {"limit": 3}),
                    ([first], {"at_revision": middle}),
                    ([first], {"at_revision": middle, "limit": -1}),
                    ([first], {"at_revision": middle, "limit": -2})):
                self.assertEqual(self.get(node, **fields), want, fields)
            for want, fields in (
                    ([first, last], {}), ([first, last], {"prefix": True}),
                    ([last, first], {"newest": True}),
                    ([last, first], {"newest": True, "prefix": True}),
                    ([last], {"latest": True}), ([first], {"limit": 1}),
                    ([last], {"newest": True, "limit": 1}),
                    ([first], {"at_revision": middle}),
                    ([first], {"at_revision": middle, "newest": True}),
                    ([first], {"at_revision": middle, "latest": True}),
                    ([last], {"from_revision": first + 1}),
                    ([last], {"from_revision": first + 1, "newest": True}),
                    ([], {"from_revision": first + 1, "at_revision": middle})):
                self.assertEqual([e.revision for e in query_grpc(
                    node, key=b"k", **fields)], want, fields)
            self.assertEqual([e.revision for e in query_grpc(
                node, follow=True, key=b"k", limit=2)], [first, last])

    def test_follow_goes_on(self):
        got = query_grpc(self.nodes[1], follow=True, key=b"k")
        self.assertEqual([next(got).revision, next(got).revision],
                         [self.first, self.last])
        for i in range(3):
            put = put_grpc(self.nodes[i % 2], b"k", b"x").revision
            self.assertEqual(next(got).revision, put)
        got.close()

    def test_a_node_stops_amid_gets(self):
        """What was answered is right; what was not says that the node went."""
        node, ended = self.nodes[1], []
        answers = [0]

        def ask(limit):
            try:
                while True:
                    self.assertEqual(self.get(node, limit=limit)[0],
                                     self.last if limit == 2 else self.first)
                    answers[0] += 1
            except grpc.RpcError as e:
                ended.append(e.code())
        threads = [threading.Thread(target=ask, args=(2 - 4 * (i % 2),))
                   for i in range(8)]
        for t in threads:
            t.start()
        wait_until("answers", lambda: answers[0] > 20)
        self.assertEqual(node.terminate(), 0)
        for t in threads:
            t.join(30)
        self.assertEqual(len(ended), len(threads))
        self.assertEqual(set(ended) - {grpc.StatusCode.UNAVAILABLE,
                                       grpc.StatusCode.CANCELLED}, set())


class Faults(DaemonTest):
    timeout = 180

    def put_until(self, stop, node_of, key, acknowledged, ids=True):
        """Put ascending numbers with request ids, each until it is
        acknowledged."""
        n = 0
        while not stop.is_set():
            request = os.urandom(16) if ids else b""
            while True:
                try:
                    result = put_grpc(node_of(n), key, b"%d" % n, timeout=5,
                                      request=request)
                    break
                except grpc.RpcError:
                    if stop.is_set() and not ids:
                        return
                    time.sleep(0.05)
            acknowledged.append((result.revision, n))
            n += 1

    def test_kill_all_at_once(self):
        cluster = self.cluster(3)
        for round_ in range(3):
            acknowledged, stop = [], threading.Event()

            def put(worker):
                node = cluster.nodes[worker % 3]
                n = 0
                while not stop.is_set():
                    try:
                        r = put_grpc(node, b"%d-%d" % (round_, worker),
                                     b"%d" % n, timeout=5)
                    except grpc.RpcError:
                        return
                    acknowledged.append((r.revision,
                                         b"%d-%d" % (round_, worker),
                                         b"%d" % n))
                    n += 1
            threads = [threading.Thread(target=put, args=(i,))
                       for i in range(8)]
            for t in threads:
                t.start()
            time.sleep(1.5)
            for node in cluster.nodes:
                node.process.kill()
            stop.set()
            for node in cluster.nodes:
                node.kill()
            for t in threads:
                t.join(30)
            self.assertGreater(len(acknowledged), 50)
            for node in cluster.nodes:
                node.start(wait=False)
            for node in cluster.nodes:
                node.wait_ready()
            there = {e.revision: (e.key, e.value) for e in query_grpc(
                cluster.nodes[round_], timeout=60)}
            for revision, key, value in acknowledged:
                self.assertEqual(there.get(revision), (key, value))

    def test_leader_changes_amid_puts(self):
        cluster = self.cluster(3, lease="1s")
        stop, acknowledged = threading.Event(), [[] for _ in range(6)]
        followed, ended = [], threading.Event()

        def follow(node):
            start = 0
            while not ended.is_set():
                try:
                    for e in query_grpc(node, follow=True, timeout=300,
                                        from_revision=start):
                        followed.append((e.revision, e.key, e.value))
                        start = e.revision + 1
                        if e.key == b"end":
                            return
                except grpc.RpcError:
                    time.sleep(0.1)
        survivor = cluster.others()[0]
        victims = [n for n in cluster.nodes if n is not survivor]
        follower = threading.Thread(target=follow, args=(survivor,))
        threads = [threading.Thread(target=self.put_until, args=(
            stop, lambda n, i=i: cluster.nodes[(i + n) % 3], b"%d" % i,
            acknowledged[i])) for i in range(6)]
        follower.start()
        for t in threads:
            t.start()
        for i in range(4):
            time.sleep(1.0)
            leader = cluster.leader()
            if leader is survivor:
                # Stopped rather than killed: its follower is to live.
                leader.suspend()
                time.sleep(2.5)
                leader.resume()
            else:
                leader.kill()
                time.sleep(1.5)
                leader.start()
        time.sleep(1.0)
        stop.set()
        for t in threads:
            t.join(60)
            self.assertFalse(t.is_alive())
        put_grpc(survivor, b"end")
        follower.join(30)
        ended.set()
        self.assertFalse(follower.is_alive())
        entries = [(e.revision, e.key, e.value)
                   for e in query_grpc(victims[0], timeout=60)]
        self.assertEqual(followed, entries)  # No gaps, no repeats.
        by_revision = {r: (k, v) for r, k, v in entries}
        for i in range(6):
            mine = acknowledged[i]
            self.assertGreater(len(mine), 20)
            for revision, n in mine:
                self.assertEqual(by_revision[revision],
                                 (b"%d" % i, b"%d" % n))
            # Each number once: none lost, none doubled.
            self.assertEqual([v for _, k, v in entries if k == b"%d" % i],
                             [b"%d" % n for _, n in mine])
        terms = {e.token for e in query_grpc(victims[0], timeout=60)}
        self.assertGreater(len(terms), 2)

    def test_hedgectl_waits_for_a_leader(self):
        cluster = self.cluster(2, lease="2s")
        leader, other = cluster.leader(), cluster.others()[0]
        leader.kill()
        start = time.monotonic()
        self.assert_done(other.ctl("put", "k", "v"))
        self.assertLess(time.monotonic() - start, 8)
        self.assertEqual(other.ctl("get", "k").stdout, b"v")
        alone = other
        alone.suspend()
        leader.start(wait=False)
        leader.wait_ready(leader=False)
        result = leader.ctl("--timeout", "300ms", "put", "k", "v2")
        self.assertIn(result.status, (0, 1))
        if result.status == 1:
            self.assertIn("leader", result.err)
        alone.resume()

    def test_unreadable_log(self):
        node = self.node(start=False)
        folder = os.path.join(self.dir, "engine", "log")
        os.makedirs(folder)
        data = os.path.join(folder, "data.mdb")
        with open(data, "wb") as f:
            f.write(os.urandom(65536))
        node.start()
        result = self.assert_status(node.ctl("put", "k", "v"), 1)
        self.assertIn(folder, result.err)
        self.assert_status(node.ctl("get", "k"), 1)
        self.assert_status(node.ctl("log"), 1)
        self.assert_done(node.ctl("sos", "write", "s", data=b"one\n"))
        self.assertEqual(node.ctl("sos", "read", "s").stdout, b"one\n")
        os.remove(data)
        time.sleep(0.3)
        self.assert_done(node.ctl("put", "k", "v"))
        self.assertEqual(node.ctl("get", "k").stdout, b"v")

    def test_nothing_of_it_is_logged(self):
        """Not even at the level that says most: values and messages are
        nobody else's business."""
        node = self.node(log_level="debug", http=True)
        secret = "my-secret-value"
        line = base64.b64encode(json.dumps(
            {"key": "k", "value": secret, "timestamp": ""}).encode())
        text = secret.encode()
        for args in (("put", "k", secret), ("get", "k"), ("log",),
                     ("put", "__hedge/k", secret), ("send", secret),
                     ("broadcast", secret), ("put", "k", secret,
                                             "--no-append")):
            node.ctl(*args)
        node.ctl("sos", "write", "s", data=text)
        node.ctl("stream-send", data=text)
        put_grpc(node, b"k", text)
        for path, body in (("put", b"k " + text), ("get", b"k"),
                           ("send", text), ("broadcast", text)):
            with urllib.request.urlopen(f"http://{node.http}/{path}",
                                        data=body, timeout=20) as r:
                self.assertEqual(r.status, 200)
        with socket.create_connection(("127.0.0.1", node.port), 20) as s:
            s.sendall(b"PUT " + line + b"\nSND " + base64.b64encode(text)
                      + b"\nPUT " + base64.b64encode(text) + b"\n")
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        self.assertEqual(node.terminate(), 0)
        logged = node.log_text()
        self.assertIn("debug", logged.lower())
        for form in (secret, base64.b64encode(text).decode().rstrip("="),
                     line.decode(), text.hex()):
            self.assertNotIn(form, logged)

    def test_full_disk(self):
        """Errors, nothing that was acknowledged is lost, the node goes on."""
        folder = os.path.join(self.dir, "small")
        os.mkdir(folder)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12M",
                               "none", folder], capture_output=True,
                              text=True, check=False)
        if done.returncode != 0:
            self.skipTest(f"a tmpfs cannot be mounted: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", "-l", folder], check=False)
        node = self.node(engine=f"lmdb:{folder}/engine", lease="2s")
        filler = os.path.join(folder, "filler")
        with open(filler, "wb") as f:
            f.write(bytes(4 * MIB))
        stored, result = 0, None
        for i in range(30):
            result = node.ctl("put", f"k{i}", "-",
                              data=random_bytes(400000, seed=i))
            if result.status != 0:
                break
            stored += 1
        self.assert_status(result, 1)
        self.assertRegex(result.err, "(?i)no space|full")
        self.assertGreater(stored, 5)
        time.sleep(3)  # The lease is renewed meanwhile.
        for _ in range(5):
            self.assert_status(node.ctl("put", "x", "-",
                                        data=random_bytes(3000000)), 1)
        for i in range(stored):
            self.assertEqual(node.ctl("get", f"k{i}").stdout,
                             random_bytes(400000, seed=i))
        self.assert_status(node.ctl("get", f"k{stored}"), 3)
        self.assert_done(node.ctl("sos", "write", "s", data=b"one\n"))
        os.remove(filler)
        self.assert_done(node.ctl("put", f"k{stored}", "now"))
        self.assertEqual(node.ctl("get", f"k{stored}").stdout, b"now")

    def test_damaged_pages(self):
        """Bytes overwritten in the file: errors or the right bytes, never
        others; the node lives."""
        node = self.node()
        value = random_bytes(3000)
        stub = log_stub(node)
        for i in range(200):
            stub.Put(pb().LogPutRequest(puts=[pb().LogPut(
                key=b"k%03d" % i, value=b"%03d" % i + value)]), timeout=10)
        node.terminate()
        data = os.path.join(self.dir, "engine", "log", "data.mdb")
        size = os.stat(data).st_size
        with open(data, "r+b") as f:
            content = f.read()
            rng = random.Random(5)
            for _ in range(40):
                # Within values, where no page header lies.
                at = content.find(value[:32], rng.randrange(size))
                if at < 0:
                    continue
                f.seek(at + rng.randrange(100, 2000))
                f.write(b"\xa5\x5a\xa5")
        node.start()
        errors = 0
        for i in range(200):
            try:
                entry = log_stub(node).Get(pb().LogGetRequest(
                    key=b"k%03d" % i), timeout=10).entries[0]
                self.assertEqual(entry.value, b"%03d" % i + value)
            except grpc.RpcError as e:
                self.assertEqual(e.code(), grpc.StatusCode.DATA_LOSS)
                errors += 1
        self.assertGreater(errors, 5)
        self.assert_status(node.ctl("log"), 1)
        self.assert_done(node.ctl("put", "k000", "anew"))
        self.assertEqual(node.ctl("get", "k000").stdout, b"anew")


if __name__ == "__main__":
    main()
