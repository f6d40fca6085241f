"""Messages, broadcasts and streams between real daemons."""
import base64
import fcntl
import json
import os
import queue
import socket
import threading
import time

import grpc

from hedge_harness import (MIB, DaemonTest, Sampler, SharedTest, Timeout,
                           finish, hedge_error, hedgectl_start, main,
                           random_bytes, report, resident, shown_on_terminal,
                           stubs, wait_until)
from test_http import metrics


def messages():
    """(messages_pb2, messages_pb2_grpc)"""
    return stubs("messages")


class Items:
    """The sending side of a stream, message by message."""

    def __init__(self, *items):
        self.queue = queue.Queue()
        for item in items:
            self.queue.put(item)

    def send(self, item):
        self.queue.put(item)

    def close(self):
        self.queue.put(None)

    def __iter__(self):
        return self

    def __next__(self):
        item = self.queue.get()
        if item is None:
            raise StopIteration
        return item


def children(pid):
    """Processes below this one, zombies too."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="ascii",
                          errors="replace") as f:
                    fields = f.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(name))
    return found


def runs(text):
    """Does a process run with this text in its command line? Handlers that
    are looked for are in scripts: the daemon has theirs in its own."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as f:
                    if text.encode() in f.read():
                        return True
            except OSError:
                continue
    return False


class Commands(SharedTest):
    """hedgectl, and a client that is not ours, with the daemon's own
    replies."""

    size = 3
    options = {"mem_limit": "16M", "disk_limit": "0", "lease": "3s",
               "sync_interval": "200ms"}

    def setUp(self):
        super().setUp()
        self.leader = self.shared.leader()
        self.pb, grpc_stubs = messages()
        self.stub = grpc_stubs.MessagesStub(self.first.channel())

    def follower(self):
        return next(n for n in self.nodes if n is not self.leader)

    def follower_stub(self):
        return messages()[1].MessagesStub(self.follower().channel())

    def test_send(self):
        for node in self.nodes:
            r = self.assert_done(node.ctl("send", "hello"))
            self.assertEqual(r.out, f"{self.leader.id}: hello")
            self.assertEqual(r.stderr, b"")
        data = bytes(range(256)) + b"\n\n\0"
        r = self.assert_done(self.first.ctl("send", "-", data=data))
        self.assertEqual(r.stdout, f"{self.leader.id}: ".encode() + data)
        r = self.assert_done(self.first.ctl("send", "-", data=b""))
        self.assertEqual(r.out, f"{self.leader.id}: ")

    def test_send_json(self):
        for data in (b"hello", b"", bytes(range(256)), bytes(3 << 20)):
            r = self.assert_done(self.follower().ctl(
                "send", "-", data=data, json_output=True)).object()
            whole = f"{self.leader.id}: ".encode() + data
            self.assertEqual(r["id"], self.leader.id)
            self.assertEqual(base64.b64decode(r["reply_base64"]), whole)
            self.assertEqual(r["reply"], None if b"\0" in data
                             else whole.decode())

    def test_terminal(self):
        """A prompt begins a line; a line that ends gets no second end."""
        for text, shown in (("x", b"x\n"), ("x\n", b"x\n")):
            self.assertEqual(shown_on_terminal("send", text, node=self.first),
                             f"{self.leader.id}: ".encode() + shown)
            self.first.ctl("put", "terminal", text)
            self.assertEqual(shown_on_terminal("get", "terminal",
                                               node=self.first), shown)

    def test_usage(self):
        self.assert_status(self.first.ctl("send"), 2)
        self.assert_status(self.first.ctl("send", "x", "--retries", "y"), 2)
        self.assert_status(self.first.ctl("broadcast", "x", "--to", ","), 2)
        self.assert_status(self.first.ctl("stream-send", "x"), 2)

    def test_retries(self):
        for n in ("0", "3", "-1"):
            self.assert_done(self.first.ctl("send", "x", "--retries", n))

    def test_broadcast(self):
        for node in self.nodes:
            r = self.assert_done(node.ctl("broadcast", "hi",
                                          json_output=True))
            self.assertEqual(
                {o["id"]: o["reply"] for o in r.objects()},
                {n.id: f"{n.id}: hi" for n in self.nodes})
            self.assertTrue(all(o["error"] is None for o in r.objects()))
        r = self.assert_done(self.first.ctl("broadcast", "hi"))
        for node in self.nodes:
            self.assertIn(f"{node.id}: hi", r.out)
        r = self.assert_done(self.first.ctl("broadcast", "hi", "--skip-self",
                                            json_output=True))
        self.assertEqual({o["id"] for o in r.objects()},
                         {n.id for n in self.nodes[1:]})

    def test_bytes_that_are_no_text(self):
        r = self.assert_done(self.first.ctl("broadcast", "-", data=b"\xff\0",
                                            json_output=True))
        for o in r.objects():
            self.assertIsNone(o["reply"])
            self.assertEqual(base64.b64decode(o["reply_base64"]),
                             f"{o['id']}: ".encode() + b"\xff\0")

    def test_broadcast_to_some(self):
        ids = [self.nodes[1].id, self.nodes[2].id]
        r = self.assert_done(self.first.ctl("broadcast", "hi", "--to",
                                            ",".join(ids), json_output=True))
        self.assertEqual(sorted(o["id"] for o in r.objects()), sorted(ids))
        r = self.first.ctl("broadcast", "hi", "--to", ids[0] + ",nobody:1",
                           json_output=True)
        self.assert_status(r, 1)
        errors = {o["id"]: o["error"] for o in r.objects()}
        self.assertIsNone(errors[ids[0]])
        self.assertIn("no member", errors["nobody:1"])

    def test_broadcast_to_too_many(self):
        before = resident(self.first.pid)
        request = self.pb.BroadcastRequest(to=["x:1"] * 500000)
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stub.Broadcast(iter([request]), timeout=20))
        self.assertIn(hedge_error(caught.exception), ("ETOOBIG", "EPROTO"))
        self.assertLess(resident(self.first.pid) - before, 128 * MIB)
        request = self.pb.BroadcastRequest(to=["x:1"] * 1024,
                                           timeout_ms=2**64 - 1)
        replies = list(self.stub.Broadcast(iter([request]), timeout=20))
        self.assertEqual(len(replies), 1024)

    def test_stream_is_full_duplex(self):
        for node in self.nodes:
            p = hedgectl_start("stream-send", node=node)
            for line in (b"one", b"", b"two"):
                p.stdin.write(line + b"\n")
                p.stdin.flush()
                # The reply comes while the input is open.
                self.assertEqual(p.stdout.readline(),
                                 f"{self.leader.id}: ".encode() + line + b"\n")
            self.assertEqual(self.assert_done(finish(p)).stdout, b"")

    def test_stream_broadcast(self):
        n = 500
        lines = "".join(f"line {i}\n" for i in range(n)).encode()
        r = self.assert_done(self.follower().ctl(
            "stream-broadcast", data=lines, json_output=True))
        got = {node.id: [] for node in self.nodes}
        for o in r.objects():
            got[o["id"]].append(o["reply"])
        for node in self.nodes:
            self.assertEqual(got[node.id],
                             [f"{node.id}: line {i}" for i in range(n)])
        r = self.assert_done(self.first.ctl("stream-broadcast", "--skip-self",
                                            data=b"x\n"))
        self.assertEqual(
            sorted(r.out.splitlines()),
            sorted(f"{n.id}\t{n.id}: x" for n in self.nodes[1:]))

    # --- a client that is not ours ---

    def test_foreign_send(self):
        request = self.pb.SendRequest(data=b"hello")
        for node in self.nodes:
            stub = messages()[1].MessagesStub(node.channel())
            replies = list(stub.Send(iter([request]), timeout=20))
            self.assertEqual(replies[0].id, self.leader.id)
            self.assertEqual(replies[0].len, len(replies[0].data))
            self.assertEqual(replies[0].data,
                             f"{self.leader.id}: hello".encode())

    def test_foreign_direct(self):
        request = self.pb.SendRequest(data=b"x", direct=True)
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.follower_stub().Send(iter([request]), timeout=20))
        error = caught.exception
        self.assertEqual(error.code(), grpc.StatusCode.FAILED_PRECONDITION)
        self.assertEqual(hedge_error(error), "ENOTLEADER")
        self.assertIn(self.leader.id, error.details())
        stub = messages()[1].MessagesStub(self.leader.channel())
        self.assertEqual(len(list(stub.Send(iter([request]), timeout=20))), 1)

    def test_foreign_pieces(self):
        data = random_bytes(5 * MIB + 7)
        pieces = [self.pb.SendRequest(data=data[i:i + MIB])
                  for i in range(0, len(data), MIB)]
        replies = list(self.follower_stub().Send(iter(pieces), timeout=60))
        reply = b"".join(r.data for r in replies)
        self.assertEqual(reply, f"{self.leader.id}: ".encode() + data)
        self.assertEqual(replies[0].len, len(reply))
        got = {n.id: b"" for n in self.nodes}
        pieces = [self.pb.BroadcastRequest(data=p.data) for p in pieces]
        for r in self.stub.Broadcast(iter(pieces), timeout=60):
            self.assertEqual(r.error, "")
            got[r.id] += r.data
        for node in self.nodes:
            self.assertEqual(got[node.id], f"{node.id}: ".encode() + data)

    def test_foreign_stream(self):
        pair = self.pb.Meta(key="k", value="v")
        long = self.pb.Meta(value="w" * 60000)
        for method in (self.stub.StreamLeader, self.stub.StreamBroadcast):
            items = Items(self.pb.StreamItem(open=self.pb.StreamOpen()))
            replies = (r for r in method(items, timeout=60)
                       if not r.HasField("open"))
            members = 1 if method is self.stub.StreamLeader else 3
            for i in range(10):
                items.send(self.pb.StreamItem(data=b"%d" % i,
                                              meta=[pair, long]))
                for _ in range(members):
                    r = next(replies)
                    self.assertEqual(r.data, f"{r.from_}: {i}".encode()
                                     if hasattr(r, "from_") else
                                     f"{getattr(r, 'from')}: {i}".encode())
                    self.assertEqual([(m.key, m.value) for m in r.meta],
                                     [("k", "v"), ("", "w" * 60000)])
            items.close()
            self.assertEqual(list(replies), [])

    def test_foreign_stream_nonsense(self):
        pair = self.pb.Meta(key="k", value="v")
        long = self.pb.Meta(key="k", value="v" * (40 << 10))
        for method in (self.stub.StreamLeader, self.stub.StreamBroadcast):
            for meta in [pair] * 300, [long] * 2:
                items = Items(self.pb.StreamItem(open=self.pb.StreamOpen()),
                              self.pb.StreamItem(meta=meta))
                with self.assertRaises(grpc.RpcError) as caught:
                    list(method(items, timeout=20))
                items.close()
                self.assertEqual(hedge_error(caught.exception), "EPROTO")

    def test_foreign_nonsense(self):
        calls = (
            lambda: self.stub.Send(iter([]), timeout=20),
            lambda: self.stub.Broadcast(iter([]), timeout=20),
            lambda: self.stub.StreamLeader(iter([]), timeout=20),
            lambda: self.stub.StreamLeader(
                iter([self.pb.StreamItem(data=b"x")]), timeout=20),
            lambda: self.stub.StreamBroadcast(
                iter([self.pb.StreamItem(
                    open=self.pb.StreamOpen(kind=9))]), timeout=20))
        for call in calls:
            with self.assertRaises(grpc.RpcError) as caught:
                list(call())
            self.assertEqual(hedge_error(caught.exception), "EPROTO")
        raw = self.first.channel().stream_stream(
            "/hedge.v1.Messages/Send", request_serializer=bytes,
            response_deserializer=bytes)
        with self.assertRaises(grpc.RpcError) as caught:
            list(raw(iter([b"\xff" * 40]), timeout=20))
        self.assertEqual(hedge_error(caught.exception), "EPROTO")

    def test_foreign_message_of_empty_objects(self):
        before = resident(self.first.pid)
        raw = self.first.channel().stream_stream(
            "/hedge.v1.MessagePeer/Stream", request_serializer=bytes,
            response_deserializer=bytes)
        with self.assertRaises(grpc.RpcError) as caught:
            list(raw(iter([b"\x1a\0" * (4 * MIB - 10)]), timeout=20))
        self.assertEqual(hedge_error(caught.exception), "EPROTO")
        self.assertLess(resident(self.first.pid) - before, 128 * MIB)

    def test_foreign_peer_nonsense(self):
        peer = messages()[1].MessagePeerStub(self.first.channel())
        calls = (
            lambda: peer.Deliver(self.pb.DeliverRequest(kind=7), timeout=20),
            lambda: peer.Deliver(self.pb.DeliverRequest(
                data=bytes(2 * MIB), kind=1, timeout_ms=1000), timeout=20),
            lambda: peer.Put(self.pb.DeliverRequest(
                kind=1, timeout_ms=1000, offset=5, len=9, data=b"x"),
                timeout=20),
            lambda: peer.Put(self.pb.DeliverRequest(
                kind=1, timeout_ms=1000, len=9, data=b"0123456789"),
                timeout=20),
            lambda: peer.Put(self.pb.DeliverRequest(
                kind=1, timeout_ms=1000, len=1 << 40, data=b"x"), timeout=20),
            lambda: peer.Fetch(self.pb.FetchRequest(held=1), timeout=20))
        expected = ("EPROTO", "ETOOBIG", "EUNAVAILABLE", "EPROTO", "ETOOBIG",
                    "EUNAVAILABLE")
        for call, name in zip(calls, expected):
            with self.assertRaises(grpc.RpcError) as caught:
                call()
            self.assertEqual(hedge_error(caught.exception), name)

    def test_an_upload_that_is_given_up(self):
        peer = messages()[1].MessagePeerStub(self.first.channel())
        peer.Put(self.pb.DeliverRequest(
            kind=1, timeout_ms=500, len=4 * MIB, upload=5, data=bytes(MIB)),
            timeout=20)
        wait_until("the upload to be forgotten",
                   lambda: self.first.status().message_used == 0)


class Programs(DaemonTest):
    """--leader-handler and --broadcast-handler."""

    def start(self, handler, n=1, **options):
        """One node, or more, whose handlers are this."""
        cluster = self.cluster(n, mem_limit="16M", disk_limit="0", lease="3s",
                               sync_interval="200ms", leader_handler=handler,
                               broadcast_handler=handler, **options)
        self.first = cluster.leader()
        return cluster

    def script(self, text):
        path = os.path.join(self.dir, f"script{len(os.listdir(self.dir))}.sh")
        with open(path, "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\n" + text)
        os.chmod(path, 0o755)
        return path

    def error(self, *args, node=None, **kwargs):
        """(hedge-error, text) of a send through a client that is not ours."""
        pb, grpc_stubs = messages()
        stub = grpc_stubs.MessagesStub((node or self.first).channel())
        kwargs.setdefault("timeout", 30)
        with self.assertRaises(grpc.RpcError) as caught:
            list(stub.Send(iter([pb.SendRequest(*args, data=b"x")]), **kwargs))
        return hedge_error(caught.exception), caught.exception.details()

    def test_output_is_the_reply(self):
        self.start("tr a-z A-Z")
        data = b"some\nlines\n"
        self.assertEqual(self.assert_done(
            self.first.ctl("send", "-", data=data)).stdout, data.upper())
        r = self.assert_done(self.first.ctl("broadcast", "x",
                                            json_output=True))
        self.assertEqual(r.object()["reply"], "X")
        p = hedgectl_start("stream-send", node=self.first)
        p.stdin.write(b"abc\n")
        p.stdin.flush()
        self.assertEqual(p.stdout.readline(), b"ABC\n")
        self.assert_done(finish(p))

    def test_words_and_quotes(self):
        self.start("""printf '%s|' "a b" c\\ d '' 'e"f'""")
        self.assertEqual(self.first.ctl("send", "x").out, "a b|c d||e\"f|")

    def test_from(self):
        self.start("sh -c 'printf %s \"$HEDGE_FROM\"'")
        self.assertEqual(self.assert_done(self.first.ctl("send", "x")).out, "")

    def test_input_that_is_not_read(self):
        self.start("true")
        self.assertEqual(self.assert_done(self.first.ctl(
            "send", "-", data=bytes(20 * MIB))).stdout, b"")

    def test_failures(self):
        self.start(self.script(
            'read what\n'
            'case $what in\n'
            'text) echo out; echo first >&2; echo "the last line" >&2;'
            ' exit 3;;\n'
            'silent) exit 4;;\n'
            'killed) kill -9 $$;;\n'
            'noisy) echo warning >&2; echo fine;;\n'
            'esac\n'))
        for what, text in (("text", "the last line"), ("silent", "status 4"),
                           ("killed", "signal 9")):
            r = self.assert_status(self.first.ctl("send", what), 1)
            self.assertIn(text, r.err)
            self.assertEqual(r.stdout, b"")
            self.assertEqual(len(r.err.splitlines()), 1)
            r = self.first.ctl("broadcast", what, json_output=True)
            self.assert_status(r, 1)
            self.assertEqual(r.object()["code"], "EHANDLER")
            self.assertIn(text, r.object()["error"])
        self.assertEqual(self.assert_done(self.first.ctl("send",
                                                         "noisy")).out,
                         "fine\n")

    def test_failure_as_a_status(self):
        self.start("false")
        name, text = self.error()
        self.assertEqual(name, "EHANDLER")
        self.assertIn("status 1", text)

    def test_a_program_that_is_not_there(self):
        for command in ("no-such-program-at-all x", "/nowhere/at/all", "''",
                        self.dir, "'cat"):
            node = self.node(start=False, leader_handler=command)
            node.start(wait=False)
            wait_until("the node to end", lambda: node.process.poll()
                       is not None)
            node.expected_to_run = False
            self.assertEqual(node.process.returncode, 2)
            self.assertIn("--leader-handler", node.log_text())

    def test_one_that_hangs(self):
        tag = f"31{os.getpid()}"
        self.start(self.script(
            f'read what\n[ "$what" = hang ] && sleep {tag} & wait\n'
            f'echo done\n'), n=2)
        other = next(n for n in self.nodes if n is not self.first)
        for node in (self.first, other):
            p = hedgectl_start("--timeout", "3s", "send", "hang", node=node)
            wait_until("the handler to run", lambda: runs(tag))
            # It holds nobody else up.
            self.assertEqual(self.assert_done(
                node.ctl("send", "go")).out, "done\n")
            r = self.assert_status(finish(p), 1)
            self.assertIn("in time", r.err)
            wait_until("all of it to be killed", lambda: not runs(tag))
        for node in self.nodes:
            wait_until("no zombies", lambda n=node: children(n.pid) == [])

    def test_a_client_that_goes(self):
        tag = f"32{os.getpid()}"
        self.start(self.script(f"exec sleep {tag}\n"), n=2)
        for node in self.nodes:
            for how in ("kill", "terminate"):
                p = hedgectl_start("--timeout", "10m", "send", "x", node=node)
                wait_until("the handler to run", lambda: runs(tag))
                getattr(p, how)()
                finish(p)
                wait_until("the handler to be killed", lambda: not runs(tag))

    def test_a_node_that_stops(self):
        tag = f"33{os.getpid()}"
        self.start(self.script(f"exec sleep {tag}\n"))
        p = hedgectl_start("--timeout", "10m", "send", "x", node=self.first)
        wait_until("the handler to run", lambda: runs(tag))
        self.assertEqual(self.first.terminate(), 0)
        wait_until("the handler to be killed", lambda: not runs(tag))
        self.assert_status(finish(p), 1)

    def test_more_output_than_there_is_room_for(self):
        self.start("cat /dev/zero", message_limit="16M")
        name, text = self.error()
        self.assertEqual(name, "EEXHAUSTED")
        self.assertIn("--message-limit", text)
        wait_until("the room to be given back",
                   lambda: self.first.status().message_used == 0)
        self.assertEqual(children(self.first.pid), [])

    def test_output_over_the_limit_of_a_message(self):
        self.start("head -c 70000000 /dev/zero", message_limit="256M")
        self.assertEqual(self.error()[0], "ETOOBIG")

    def test_background_work_is_ended(self):
        tag = f"34{os.getpid()}"
        self.start(self.script(f"sleep {tag} &\necho started\n"))
        self.assertEqual(self.assert_done(self.first.ctl("send", "x")).out,
                         "started\n")
        wait_until("what it left to be killed", lambda: not runs(tag))

    def test_one_that_gets_away(self):
        script = self.script(
            "setsid sh -c 'while echo x; do :; done >&2' &\necho done\n")
        self.start(script)
        self.addCleanup(lambda: wait_until(
            "what got away to end", lambda: not runs("while echo x")))
        self.assertEqual(self.assert_done(self.first.ctl("send", "x")).out,
                         "done\n")

    def test_descriptors(self):
        self.start(self.script("ls /proc/self/fd\n"))
        r = self.assert_done(self.first.ctl("send", "x"))
        self.assertEqual(r.out.split(), ["0", "1", "2", "3"])

    def test_many_at_once(self):
        self.start("sh -c 'cat; sleep 0.1'", n=2)
        other = next(n for n in self.nodes if n is not self.first)
        running = [hedgectl_start("--timeout", "60s", "send", f"m{i}",
                                  node=other) for i in range(40)]
        for i, p in enumerate(running):
            self.assertEqual(self.assert_done(finish(p)).out, f"m{i}")
        for node in self.nodes:
            self.assertEqual(children(node.pid), [])

    def test_no_more_than_the_limit_at_once(self):
        """64 programs run, the others wait; when these hang, the other kind
        of message goes on all the same."""
        gate = os.path.join(self.dir, "gate")
        with open(gate, "w", encoding="ascii") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            self.start(f"flock -s {gate} cat", http=True)
            pb, grpc_stubs = messages()
            stub = grpc_stubs.MessagesStub(self.first.channel())
            calls = [stub.Send(iter([pb.SendRequest(data=b"%d" % i)]),
                               timeout=60) for i in range(70)]

            def figure(name, label):
                return metrics(self.first)["hedge_" + name, label]
            wait_until("all to have come",
                       lambda: figure("streams", "all") == 70)
            wait_until("as many as may run",
                       lambda: len(children(self.first.pid)) >= 64)
            self.assertEqual(len(children(self.first.pid)), 64)
            self.assertEqual(figure("handlers", "leader"), 64)
            self.assertGreaterEqual(figure("streams", "send"), 64)
            self.assertEqual(figure("streams_limit", "send"), 64)
            p = hedgectl_start("--timeout", "60s", "broadcast", "x",
                               node=self.first)
            wait_until("the other kind to run",
                       lambda: len(children(self.first.pid)) == 65)
            # 6 and 90 more may wait; the rest is refused at once.
            more = [stub.Send(iter([pb.SendRequest(data=b"more")]), timeout=60)
                    for _ in range(300)]
            wait_until("those too many to be refused",
                       lambda: sum(c.done() for c in more) >= 210)
            refused = [c for c in more if c.done()]
            self.assertEqual(len(refused), 210)
            for call in refused:
                self.assertEqual(call.code(),
                                 grpc.StatusCode.RESOURCE_EXHAUSTED)
                self.assertIn("lets 96 wait", call.details())
            fcntl.flock(f, fcntl.LOCK_UN)
            for i, call in enumerate(calls):
                self.assertEqual(b"".join(r.data for r in call), b"%d" % i)
            self.assertIn("x", self.assert_done(finish(p)).out)


class Budget(DaemonTest):
    """Long messages within --message-limit."""

    def start(self, handler, n=2, **options):
        cluster = self.cluster(n, mem_limit="16M", disk_limit="0", lease="3s",
                               sync_interval="200ms", leader_handler=handler,
                               broadcast_handler=handler, **options)
        self.leader = cluster.leader()
        self.other = next((x for x in self.nodes if x is not self.leader),
                          self.leader)

    def wait_empty(self):
        for node in self.nodes:
            wait_until("the messages to be gone",
                       lambda n=node: n.status().message_used == 0)

    def test_64_mib_both_ways(self):
        self.start("cat", message_limit="256M")
        data = random_bytes(64 * MIB)
        for node in self.nodes:
            r = self.assert_done(node.ctl("--timeout", "60s", "send", "-",
                                          data=data))
            self.assertTrue(r.stdout == data)
        self.wait_empty()
        r = self.leader.ctl("send", "-", data=data + b"x")
        self.assert_status(r, 2)
        self.assertIn("64 MiB", r.err)

    def test_64_mib_with_the_default(self):
        self.start("wc -c")
        r = self.assert_done(self.leader.ctl("--timeout", "60s", "send", "-",
                                             data=bytes(64 * MIB)))
        self.assertEqual(int(r.out), 64 * MIB)
        for node in self.nodes:
            self.assertLess(node.resident(), (16 + 64 + 64) * MIB)
        self.wait_empty()

    def test_waiting_for_room(self):
        """Four of 40 MiB at a time, and room for one."""
        self.start("wc -c", n=1)
        running = []
        data = bytes(40 * MIB)
        results = queue.Queue()

        def one():
            results.put(self.leader.ctl("--timeout", "100s", "send", "-",
                                        data=data, timeout=110))

        # hedgectl is started on the main thread elsewhere, for pdeathsig;
        # these threads live as long as their programs.
        for _ in range(4):
            running.append(threading.Thread(target=one))
            running[-1].start()
        for thread in running:
            thread.join()
        for _ in range(4):
            self.assertEqual(int(self.assert_done(results.get()).out),
                             40 * MIB)
        self.wait_empty()

    def test_no_room_until_the_deadline(self):
        self.start("wc -c", message_limit="16M", n=1)
        pb, grpc_stubs = messages()
        stub = grpc_stubs.MessagesStub(self.leader.channel())
        pieces = [pb.SendRequest(data=bytes(MIB)) for _ in range(20)]
        with self.assertRaises(grpc.RpcError) as caught:
            list(stub.Send(iter(pieces), timeout=10))
        self.assertEqual(caught.exception.code(),
                         grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(hedge_error(caught.exception), "EEXHAUSTED")
        self.wait_empty()
        self.assertEqual(self.assert_done(
            self.leader.ctl("send", "x")).out.strip(), "1")

    def test_first_pieces_that_wait(self):
        """Nobody may fill the memory with messages there is no room for."""
        self.start("sh -c 'cat >/dev/null; sleep 600'", n=1,
                   message_limit="16M")
        p = hedgectl_start("--timeout", "10m", "send", "-", node=self.leader)
        p.stdin.write(bytes(14 * MIB))
        p.stdin.close()
        p.stdin = None
        wait_until("the message to be counted",
                   lambda: self.leader.status().message_used >= 14 * MIB)
        pb, grpc_stubs = messages()
        stub = grpc_stubs.MessagesStub(self.leader.channel())
        before = self.leader.resident()
        with Sampler(lambda: [self.leader.resident()]) as peak:
            calls = [stub.Send(iter([pb.SendRequest(data=bytes(7 * MIB))]),
                               timeout=8) for _ in range(64)]
            for call in calls:
                with self.assertRaises(grpc.RpcError):
                    list(call)
        grown = peak.values[0] - before
        report("first pieces that wait", grown=f"{grown / MIB:.1f}MiB")
        self.assertLess(grown, 192 * MIB)
        p.kill()
        finish(p)
        self.wait_empty()

    def test_status_shows_it(self):
        self.start("sh -c 'cat >/dev/null; sleep 600'", n=1)
        p = hedgectl_start("--timeout", "10m", "send", "-", node=self.leader)
        p.stdin.write(bytes(8 * MIB))
        p.stdin.close()
        p.stdin = None
        wait_until("the message to be counted",
                   lambda: self.leader.status().message_used >= 8 * MIB)
        self.assertGreaterEqual(
            self.leader.ctl("status", json_output=True)
            .object()["message_used"], 8 * MIB)
        p.kill()
        finish(p)
        self.wait_empty()


class Faults(DaemonTest):
    """Nodes that die, hang, or lead no more."""

    def start(self, n=3, **options):
        options = {"mem_limit": "16M", "disk_limit": "0", "lease": "2s",
                   "sync_interval": "200ms", **options}
        cluster = self.cluster(n, **options)
        self.leader = cluster.leader()
        self.others = [x for x in self.nodes if x is not self.leader]
        return cluster

    def marker(self, name):
        return os.path.join(self.dir, name)

    def slow_handler(self):
        """Says that it runs, and hangs until it is told to go on."""
        path = self.marker("slow.sh")
        with open(path, "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\nread what\n"
                    f"touch {self.dir}/running\n"
                    f"while [ -d {self.dir} -a ! -e {self.dir}/go ]; do\n"
                    "sleep 0.05; done\n"
                    "echo \"$what\"\n")
        os.chmod(path, 0o755)
        return path

    def test_leader_killed_during_send_with_retries(self):
        self.start(leader_handler=self.slow_handler())
        p = hedgectl_start("--timeout", "60s", "send", "hello", "--retries",
                           "-1", node=self.others[0])
        wait_until("the handler to run",
                   lambda: os.path.exists(self.marker("running")))
        self.leader.kill()
        open(self.marker("go"), "w", encoding="ascii").close()
        self.assertEqual(self.assert_done(finish(p, b"")).out, "hello\n")

    def test_leader_stopped_during_send_with_retries(self):
        """A leader that hangs loses its lease; the message goes to the next
        one although no connection has broken: that would take 15 s."""
        self.start(leader_handler=self.slow_handler())
        p = hedgectl_start("--timeout", "14s", "send", "hello", "--retries",
                           "-1", node=self.others[0])
        wait_until("the handler to run",
                   lambda: os.path.exists(self.marker("running")))
        self.leader.suspend()
        try:
            open(self.marker("go"), "w", encoding="ascii").close()
            self.assertEqual(self.assert_done(finish(p, b"")).out, "hello\n")
        finally:
            self.leader.resume()

    def test_leader_killed_during_send(self):
        self.start(leader_handler=self.slow_handler())
        p = hedgectl_start("--timeout", "60s", "send", "hello",
                           node=self.others[0])
        wait_until("the handler to run",
                   lambda: os.path.exists(self.marker("running")))
        self.leader.kill()
        r = self.assert_status(finish(p, b""), 1)
        self.assertIn(self.leader.id, r.err)

    def test_a_leader_that_is_gone_for_long(self):
        """Only the dead leader's lease is there: a send with retries waits for
        another leader, and says what is wrong when there is none in time."""
        self.start(n=2, lease="60s")
        self.leader.kill()
        pb, grpc_stubs = messages()
        stub = grpc_stubs.MessagesStub(self.others[0].channel())
        for retries in (0, -1):
            with self.assertRaises(grpc.RpcError) as caught:
                list(stub.Send(iter([pb.SendRequest(data=b"x",
                                                    retries=retries)]),
                               timeout=1))
            self.assertEqual(caught.exception.code(),
                             grpc.StatusCode.UNAVAILABLE)
            self.assertIn(hedge_error(caught.exception),
                          ("ENOLEADER", "EUNAVAILABLE"))

    def test_a_connection_serves_many(self):
        """The way to the leader and to the members is made once, and not for
        each message: no connection comes or goes."""
        self.start(tcp=True)
        ports = {"%04X" % (n.port + i) for n in self.nodes for i in (0, 1)}

        def connections():
            """Those that are gone stay in these tables for a minute."""
            rows = set()
            for kind in ("tcp", "tcp6"):
                try:
                    with open(f"/proc/self/net/{kind}",
                              encoding="ascii") as f:
                        for row in f.readlines()[1:]:
                            _, here, there = row.split()[:3]
                            if {here[-4:], there[-4:]} & ports:
                                rows.add((here[-4:], there[-4:]))
                except FileNotFoundError:
                    continue
            return rows
        pb, grpc_stubs = messages()
        stub = grpc_stubs.MessagesStub(self.others[0].channel())

        def all_of_it():
            for _ in range(40):
                list(stub.Send(iter([pb.SendRequest(data=b"x")]), timeout=20))
                list(stub.Broadcast(iter([pb.BroadcastRequest(data=b"x")]),
                                    timeout=20))
        all_of_it()
        before = connections()
        self.assertGreater(len(before), 2)
        all_of_it()
        self.assertLess(len(connections() - before), 8)

    def test_calls_without_a_leader(self):
        """Whatever needs one is told that there is none, at its deadline; the
        rest goes on."""
        self.start(n=2, lease="60s")
        self.leader.kill()
        node = self.others[0]
        for args in (("send", "x"), ("send", "x", "--retries", "-1"),
                     ("stream-send",), ("put", "k", "v"),
                     ("put", "k", "v", "--no-append"),
                     ("sem", "acquire", "x", "--limit", "1", "--ttl", "60s"),
                     ("sem", "ls"), ("lock", "run", "x", "--", "true"),
                     ("sem", "run", "x", "--limit", "2", "--", "true")):
            r = node.ctl("--timeout", "1s", *args, data=b"x\n")
            self.assertNotEqual(r.status, 0, str(r))
            self.assertEqual(r.stdout, b"", str(r))
            # The client's own deadline may have been the faster.
            self.assertRegex(r.err, f"leader|{self.leader.id}|Deadline",
                             str(r))
        with socket.create_connection(("127.0.0.1", node.port), 60) as s:
            s.sendall(b"LDR\nSND eA==\nSEM x 1 a\nSEA x a\nSER x a\n")
            s.shutdown(socket.SHUT_WR)
            lines = s.makefile("rb").read().split(b"\n")
        self.assertEqual(len(lines), 6, lines)
        self.assertNotIn(b"ACK", lines)
        self.assertEqual(self.assert_status(node.ctl(
            "get", "k"), 3).stdout, b"")
        r = node.ctl("broadcast", "x", "--to", node.id, json_output=True)
        self.assertEqual(self.assert_done(r).object()["reply"],
                         f"{node.id}: x")

    def test_member_killed_during_broadcast(self):
        self.start(broadcast_handler=self.slow_handler())
        victim, asked = self.others
        p = hedgectl_start("-o", "json", "--timeout", "60s", "broadcast",
                           "hello", node=asked)
        wait_until("the handlers to run",
                   lambda: all(children(n.pid) for n in self.nodes))
        victim.kill()
        first = json.loads(p.stdout.readline())
        self.assertEqual(first["id"], victim.id)  # At once: nobody waits.
        self.assertEqual(first["code"], "EUNAVAILABLE")
        self.assertIn(victim.id, first["error"])
        open(self.marker("go"), "w", encoding="ascii").close()
        r = self.assert_status(finish(p, b""), 1)
        self.assertEqual({o["id"]: o["reply"] for o in r.objects()},
                         {n.id: "hello\n" for n in self.nodes
                          if n is not victim})

    def test_member_stopped_during_broadcast(self):
        self.start(sync_interval="5s", lease="30s")
        victim, asked = self.others
        victim.suspend()
        try:
            p = hedgectl_start("-o", "json", "--timeout", "5s", "broadcast",
                               "hello", node=asked)
            first = [json.loads(p.stdout.readline()) for _ in range(2)]
            self.assertEqual({o["reply"] for o in first},
                             {f"{n.id}: hello" for n in self.nodes
                              if n is not victim})
            r = self.assert_status(finish(p, b""), 1)
            self.assertEqual(r.object()["id"], victim.id)
            self.assertEqual(r.object()["code"], "ETIMEDOUT")
        finally:
            victim.resume()

    def test_stream_to_a_leader_that_is_killed(self):
        self.start()
        p = hedgectl_start("stream-send", node=self.others[0])
        p.stdin.write(b"one\n")
        p.stdin.flush()
        self.assertEqual(p.stdout.readline(),
                         f"{self.leader.id}: one\n".encode())
        self.leader.kill()
        # Although its input stays open.
        self.assertNotEqual(p.stderr.readline(), b"")
        self.assertEqual(p.wait(30), 1)
        finish(p, b"")

    def test_member_killed_under_a_broadcast_stream(self):
        self.start()
        victim, asked = self.others
        p = hedgectl_start("-o", "json", "stream-broadcast", node=asked)

        def line(text, n):
            p.stdin.write(text + b"\n")
            p.stdin.flush()
            return [json.loads(p.stdout.readline()) for _ in range(n)]

        self.assertEqual(len({o["id"] for o in line(b"one", 3)}), 3)
        victim.kill()
        failure = json.loads(p.stdout.readline())
        self.assertEqual(failure["id"], victim.id)
        self.assertEqual(failure["code"], "EUNAVAILABLE")
        for text in (b"two", b"three"):
            self.assertEqual({o["reply"] for o in line(text, 2)},
                             {f"{n.id}: {text.decode()}" for n in self.nodes
                              if n is not victim})
        self.assert_status(finish(p, b""), 1)

    def test_member_stopped_under_a_broadcast_stream(self):
        """The others go on, without it from some time on."""
        self.start(sync_interval="5s", lease="30s")
        victim, asked = self.others
        self.assert_done(asked.ctl("broadcast", "x"))  # All are connected.
        victim.suspend()
        try:
            n = 4000
            text = b"x" * 1000
            p = hedgectl_start("-o", "json", "stream-broadcast", node=asked)
            r = finish(p, b"".join(b"%d %s\n" % (i, text) for i in range(n)),
                       timeout=100)
            self.assert_status(r, 1)
            replies = {}
            for o in r.objects():
                replies.setdefault(o["id"], []).append(o)
            # Nearly always the first of them: the connection may die, too.
            (failure,) = replies.pop(victim.id)
            self.assertIn(failure["code"], ("ETIMEDOUT", "EUNAVAILABLE"))
            self.assertEqual(len(replies), 2)
            for got in replies.values():
                self.assertEqual([int(o["reply"].split()[1]) for o in got],
                                 list(range(n)))
        finally:
            victim.resume()


if __name__ == "__main__":
    main()
