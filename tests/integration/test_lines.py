"""The reference's line protocol, as its own programs and others speak it."""
import base64
import json
import os
import resource
import socket
import struct
import threading
import time

from hedge_harness import (MIB, DaemonTest, SharedTest, main, random_bytes,
                           wait_until)

LINES_MAX = 128  # Connections at a time.


def b64(data):
    if isinstance(data, str):
        data = data.encode()
    return base64.b64encode(data).decode()


def unb64(text):
    return base64.b64decode(text, validate=True)


class Lines:
    """A connection to a node's listen port."""

    def __init__(self, node, timeout=30):
        self.socket = socket.create_connection(("127.0.0.1", node.port),
                                               timeout)
        self.file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data if isinstance(data, bytes)
                            else data.encode())

    def receive(self):
        """One reply, without its end; None: they hung up."""
        try:
            line = self.file.readline()
        except ConnectionResetError:
            return None  # They had not read all of what was sent.
        if not line:
            return None
        assert line.endswith(b"\n"), line
        return line[:-1].decode()

    def ask(self, line):
        self.send(line + "\n")
        return self.receive()

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def ask(node, line):
    with Lines(node) as c:
        return c.ask(line)


class LinesTest(SharedTest):
    size = 2
    options = {"sync_interval": "200ms"}

    def setUp(self):
        super().setUp()
        self.leader = self.shared.leader()
        self.other, = [n for n in self.nodes if n is not self.leader]

    def tearDown(self):
        # Whatever was said, they are who they were.
        for node in self.nodes:
            self.assertEqual(ask(node, "HEY"), "ACK")
            self.assertEqual(self.members(node),
                             sorted(n.id for n in self.nodes))

    def members(self, node):
        return sorted(m["id"] for m in
                      node.ctl("members", json_output=True).objects())


class Cluster(LinesTest):

    def test_leader(self):
        self.assertEqual(ask(self.leader, "LDR"), "ACK")
        self.assertEqual(ask(self.other, "LDR"), "")

    def test_hey(self):
        wanted = {n.id: {} for n in self.nodes}
        for node in self.nodes:
            self.assertEqual(ask(node, "HEY"), "ACK")
            reply = ask(node, "HEY 10.9.8.7:8080")
            self.assertEqual(json.loads(unb64(reply)), wanted)

    def test_strangers_change_no_membership(self):
        for node in self.nodes:
            for members in ('{"10.9.8.7:1":{}}', "null", "{}", "junk", "",
                            "[" * 5000):
                self.assertEqual(ask(node, "MEM " + b64(members)), "ACK")
            self.assertNotEqual(ask(node, "MEM !"), "ACK")
            ask(node, "HEY 10.9.8.7:1")
        time.sleep(1)  # tearDown looks at who is there.

    def test_junk(self):
        for line in ("", " ", "\r", "XYZ", "ldr", "LDR x", "SND", "SND !",
                     "SND YQ", "ALL", "ALL -_-_", "PUT", "PUT !", "SEM",
                     "SEM x", "SEM x 1", "SEM x y z a", "SEA", "SEA x", "SER",
                     "SER x", "HEY a b", "SEM  1 x", "\0", "\x7f\x01",
                     "GET / HTTP/1.1", "SEM x -1 a", "SEM x 99999999999999 a",
                     "SEA nowhere nobody", "SER nowhere nobody"):
            with Lines(self.leader) as c:
                reply = c.ask(line)
                self.assertIsNotNone(reply, line)
                self.assertNotEqual(reply, "ACK", line)
                text = unb64(reply[4:] if reply.startswith("ACK ") else reply)
                self.assertTrue(text, line)
                self.assertEqual(c.ask("LDR"), "ACK", line)

    def test_bytes(self):
        for seed in range(30):
            with Lines(self.leader) as c:
                try:
                    c.send(random_bytes(20_000, seed) + b"\n")
                    c.socket.shutdown(socket.SHUT_WR)
                    while c.receive() is not None:
                        pass
                except OSError:
                    pass  # They hang up on a line that is too long.

    def test_in_pieces(self):
        with Lines(self.leader) as c:
            for byte in b"LDR\r\nHEY\n":
                c.send(bytes([byte]))
            self.assertEqual(c.receive(), "ACK")
            self.assertEqual(c.receive(), "ACK")

    def test_pipelining(self):
        with Lines(self.leader) as c:
            c.send("LDR\nHEY\nHEY a:1\nXYZ\n" * 500)
            c.socket.shutdown(socket.SHUT_WR)
            for _ in range(500):
                self.assertEqual(c.receive(), "ACK")
                self.assertEqual(c.receive(), "ACK")
                self.assertIn(b"{", unb64(c.receive()))
                self.assertEqual(unb64(c.receive()), b"unknown request")
            self.assertIsNone(c.receive())

    def test_too_long(self):
        for line in ("HEY " + "x" * 5000, "x" * 5000,
                     "MEM " + "A" * (2 * MIB),
                     "SND " + "A" * 5 + "!" * (90 * MIB)):
            with Lines(self.leader, timeout=60) as c:
                try:
                    c.send(line + "\nLDR\n")
                except OSError:
                    pass  # They did not want to hear the end of it.
                try:
                    reply = c.receive()
                    while reply is not None:
                        self.assertNotEqual(reply, "ACK")
                        reply = c.receive()
                except OSError:
                    pass


class Messages(LinesTest):

    def test_send(self):
        for message in (b"hello", b"", b"\0\xff\n", random_bytes(100_000)):
            reply = ask(self.leader, "SND " + b64(message))
            self.assertTrue(reply.startswith("ACK "), reply[:200])
            self.assertEqual(unb64(reply[4:]),
                             self.leader.id.encode() + b": " + message)

    def test_not_the_leader(self):
        reply = ask(self.other, "SND " + b64("hello"))
        self.assertFalse(reply.startswith("ACK"), reply)
        self.assertIn(b"leader", unb64(reply))

    def test_broadcast(self):
        for node in self.nodes:
            reply = ask(node, "ALL " + b64("hello"))
            self.assertEqual(unb64(reply[4:]), f"{node.id}: hello".encode())

    def test_large(self):
        message = random_bytes(20 * MIB)
        with Lines(self.leader, timeout=60) as c:
            c.send("ALL " + b64(message) + "\n")
            reply = c.receive()
            self.assertEqual(unb64(reply[4:]),
                             self.leader.id.encode() + b": " + message)
            self.assertEqual(c.ask("LDR"), "ACK")

    def test_order(self):
        with Lines(self.leader) as c:
            c.send("".join(f"SND {b64(str(i))}\nLDR\n" for i in range(200)))
            for i in range(200):
                self.assertEqual(unb64(c.receive()[4:]),
                                 f"{self.leader.id}: {i}".encode())
                self.assertEqual(c.receive(), "ACK")

    def test_ending_to_send_is_not_leaving(self):
        with Lines(self.leader) as c:
            c.send(f"SND {b64('x')}\n")
            c.socket.shutdown(socket.SHUT_WR)
            self.assertEqual(unb64(c.receive()[4:]),
                             f"{self.leader.id}: x".encode())
            self.assertIsNone(c.receive())


def put(key, value, **more):
    return "PUT " + b64(json.dumps({"key": key, "value": value,
                                    "timestamp": "2026-01-01T00:00:00Z",
                                    **more}))


class Log(LinesTest):

    def get(self, key, *flags):
        """Values, the newest first."""
        return [v["value"] for v in self.other.ctl(
            "get", key, *flags, json_output=True).objects()]

    def refused(self, line):
        reply = ask(self.leader, line)
        self.assertTrue(reply.startswith("ACK "), reply)
        return unb64(reply[4:]).decode()

    def test_put(self):
        self.assertEqual(ask(self.leader, put("a", "one")), "ACK")
        self.assertEqual(ask(self.leader, put("a", "two \u00e4\n\"")), "ACK")
        self.assertEqual(self.get("a", "--all"), ["two \u00e4\n\"", "one"])
        self.assertEqual(ask(self.leader, put("a", "three") + " noappend"),
                         "ACK")
        self.assertEqual(self.get("a", "--all"), ["three", "one"])
        big = "x" * (15 * MIB)
        self.assertEqual(ask(self.leader, put("big", big)), "ACK")
        self.assertEqual(self.get("big"), [big])
        self.assertEqual(ask(self.leader, put("Key", "v", Id="x", more=[1])),
                         "ACK")

    def test_not_the_leader(self):
        self.assertEqual(ask(self.other, put("n", "v")), "")
        self.assertEqual(self.get("n"), [])

    def test_what_is_refused(self):
        for line in (put("", "v"), put("__hedge/x", "v"), put("k" * 600, "v"),
                     put("k", "v") + " append", put("k", 7), put(None, "v"),
                     put("nul", "a\0b"), put("a\0b", "v"),
                     "PUT " + b64("null"), "PUT " + b64("{}"),
                     "PUT " + b64('{"key":"k","value":"v"} x'),
                     "PUT " + b64('{"key":"k"'), "PUT " + b64("[" * 100_000),
                     "PUT " + b64('{"a":' * 50_000),
                     "PUT " + b64(b"\xff\xfe{}"), "PUT " + b64("")):
            self.assertTrue(self.refused(line), line[:100])
        self.assertIn("limit", self.refused(put("k", "v" * (17 * MIB))))
        for key in ("k", "nul"):
            self.assertEqual(self.get(key), [])


class Semaphores(LinesTest):

    def acquire(self, name, caller, node=None):
        """"": granted; else "0:why" or "1:why"."""
        reply = ask(node or self.leader, f"SEA {name} {caller}")
        return unb64(reply[4:]).decode() if reply != "ACK" else ""

    def test_permits(self):
        self.assertEqual(ask(self.leader, "SEM two 2 a:1"), "ACK")
        self.assertEqual(ask(self.leader, "SEM two 2 b:1"), "ACK")
        self.assertEqual(self.acquire("two", "a:1"), "")
        self.assertEqual(self.acquire("two", "b:1", self.other), "")
        self.assertTrue(self.acquire("two", "c:1").startswith("1:"))
        self.assertTrue(self.acquire("two", "a:1").startswith("0:"))
        info = self.first.ctl("sem", "ls", "two", json_output=True).object()
        self.assertEqual(sorted(h["holder"] for h in info["holders"]),
                         ["a:1", "b:1"])
        self.assertEqual(ask(self.leader, "SER two a:1"), "ACK")
        self.assertEqual(self.acquire("two", "c:1"), "")
        self.assertTrue(self.acquire("two", "a:1").startswith("1:"))
        for caller in ("b:1", "c:1"):
            self.assertEqual(ask(self.leader, f"SER two {caller}"), "ACK")
        reply = ask(self.leader, "SER two c:1")
        self.assertTrue(reply.startswith("ACK "), reply)

    def test_limits(self):
        self.assertEqual(ask(self.leader, "SEM one 1 a:1"), "ACK")
        reply = ask(self.leader, "SEM one 2 a:1")
        self.assertIn(b"limit", unb64(reply[4:]))
        for limit in ("0", "-1", "x", "1.5", "99999999999999999999",
                      "2147483648"):
            reply = ask(self.leader, f"SEM bad {limit} a:1")
            self.assertTrue(reply.startswith("ACK "), limit)
        self.assertTrue(self.acquire("bad", "a:1").startswith("0:"))
        self.assertTrue(self.acquire("../x", "a:1").startswith("0:"))
        reply = ask(self.other, "SEM one 1 a:1")
        self.assertIn(b"leader", unb64(reply[4:]))

    def test_callers_are_text(self):
        """Nobody could read a list that names such a holder."""
        for caller in (b"\xff\xfe", b"a\xc0\x80", b"\xed\xa0\x80"):
            lines = Lines(self.leader)
            for line in (b"SEM text 1 " + caller, b"SEA text " + caller):
                lines.send(line + b"\n")
                self.assertIn(b"UTF-8", unb64(lines.receive()[4:]), line)
        self.assert_done(self.first.ctl("sem", "ls"))

    def test_each_a_permit_of_their_own(self):
        self.assertEqual(ask(self.leader, "SEM many 3 x"), "ACK")
        got = []

        def client(i):
            got.append((i % 5, self.acquire("many", f"c{i % 5}")))
        threads = [threading.Thread(target=client, args=(i,))
                   for i in range(40)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        granted = [caller for caller, why in got if why == ""]
        self.assertEqual(len(granted), 3, got)
        self.assertEqual(len(set(granted)), 3, got)
        for caller in granted:
            self.assertEqual(ask(self.leader, f"SER many c{caller}"), "ACK")

    def test_permits_of_others(self):
        """A line names its caller as it likes: that does not make it the
        owner of what was acquired in another way."""
        token = int(self.assert_done(self.first.ctl(
            "sem", "acquire", "theirs", "--limit", 1, "--ttl", "60s")).out)

        def holders():
            return self.first.ctl("sem", "ls", "theirs",
                                  json_output=True).object()["holders"]
        held = holders()
        self.assertEqual([h["token"] for h in held], [token])
        self.assertEqual(ask(self.leader, "SEM theirs 1 a:1"), "ACK")
        for caller in ("a:1", held[0]["holder"], str(token), self.first.id,
                       self.leader.id):
            self.assertNotEqual(ask(self.leader, f"SER theirs {caller}"),
                                "ACK", caller)
            self.assertTrue(self.acquire("theirs", "a:1").startswith("1:"))
        self.assertEqual([h["token"] for h in holders()], [token])
        self.assert_done(self.first.ctl("sem", "release", "theirs", token))
        self.assertEqual(self.acquire("theirs", "a:1"), "")
        self.assertEqual(ask(self.leader, "SER theirs a:1"), "ACK")


class Crowd(DaemonTest):

    def test_slow_clients_hold_up_nobody(self):
        node = self.node()
        slow = [Lines(node) for _ in range(20)]
        for i, c in enumerate(slow):
            c.send("SND QUFB" if i % 2 else "LD")
        # One that asks for much and takes nothing.
        deaf = Lines(node)
        threading.Thread(target=self.flood, args=(deaf,), daemon=True).start()
        for _ in range(20):
            self.assertEqual(ask(node, "LDR"), "ACK")
        for i, c in enumerate(slow):
            c.send("\n" if i % 2 else "R\n")
            self.assertTrue(c.receive().startswith("ACK"))
            c.close()
        deaf.close()

    @staticmethod
    def flood(c):
        try:
            while True:
                c.send("HEY a:1\n" * 1000)
        except OSError:
            pass

    def test_the_idle_make_way(self):
        node = self.node()
        idle = [Lines(node) for _ in range(LINES_MAX)]
        self.assertEqual([c.ask("LDR") for c in idle], ["ACK"] * LINES_MAX)
        with Lines(node) as late:
            self.assertEqual(late.ask("LDR"), "ACK")
            self.assertIsNone(idle[0].receive())
            self.assertEqual(idle[-1].ask("LDR"), "ACK")
        for c in idle:
            c.close()

    def test_aborted_connections(self):
        node = self.node()
        for i in range(300):
            c = Lines(node)
            c.send("LDR\n" * (i % 3) + "SND QU" * (i % 2))
            c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                struct.pack("ii", 1, 0))
            c.close()
        self.assertEqual(ask(node, "LDR"), "ACK")

    def test_what_is_cut_off_reaches_nobody(self):
        """A line without its end is no request, however whole it looks."""
        heard = os.path.join(self.dir, "heard")
        node = self.node(leader_handler=f"tee -a {heard}",
                         broadcast_handler=f"tee -a {heard}")
        whole = b64("cut " * 3000)
        for line in ("SND " + whole, "SND " + whole[:4000], "SND YQ==",
                     "ALL " + whole, "ALL " + whole[:4], put("cut", "v"),
                     put("cut", "v") + " noappend", "SEM cut 1 a:1", "LDR"):
            with Lines(node) as c:
                c.send(line)
                c.socket.shutdown(socket.SHUT_WR)
                self.assertIsNone(c.receive(), line[:100])
        self.assertEqual(ask(node, "SND " + b64("whole")),
                         "ACK " + b64("whole"))
        with open(heard, "rb") as f:
            self.assertEqual(f.read(), b"whole")
        self.assert_status(node.ctl("get", "cut"), 3)
        self.assertTrue(unb64(ask(node, "SEA cut a:1")[4:]).startswith(b"0:"))

    def test_running_out_of_descriptors(self):
        """Taking connections goes on when there are descriptors again."""
        node = self.node()
        folder = f"/proc/{node.pid}/fd"
        most = len(os.listdir(folder)) + 10
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (most, most))
        clients = [Lines(node) for _ in range(40)]
        wait_until("descriptors to run out",
                   lambda: len(os.listdir(folder)) == most)
        time.sleep(0.3)  # It is told so a few times.
        for c in clients:
            c.close()
        for _ in range(3):
            self.assertEqual(ask(node, "LDR"), "ACK")

    def test_stopping_with_clients(self):
        node = self.node()
        idle = [Lines(node) for _ in range(10)]
        begun = Lines(node)
        begun.send("SND QUJD")
        self.assertEqual(node.terminate(), 0)
        for c in [*idle, begun]:
            self.assertIsNone(c.receive())
            c.close()

    def test_memory(self):
        node = self.node(message_limit="64M")
        message = b64(random_bytes(15 * MIB))
        errors = []

        def client():
            with Lines(node, timeout=100) as c:
                for _ in range(2):
                    c.send("ALL " + message + "\n")
                    reply = c.receive()
                    if reply is None:
                        errors.append("hung up on")
                        return
                    if not reply.startswith("ACK ") and \
                            b"message" not in unb64(reply):
                        errors.append(unb64(reply))
        threads = [threading.Thread(target=client) for _ in range(8)]
        for t in threads:
            t.start()
        peak = 0
        while any(t.is_alive() for t in threads):
            peak = max(peak, node.resident())
            time.sleep(0.02)
        self.assertEqual(errors, [])
        # What some of them were refused is there for the next.
        self.assertTrue(ask(node, "ALL " + message).startswith("ACK "))
        # --mem-limit + 64 MiB, and the messages beside them.
        self.assertLess(peak, (64 + 64 + 64) * MIB)

    def test_off(self):
        node = self.node(line_protocol="off")
        with Lines(node) as c:
            try:
                c.send("LDR\n")
                self.assertIsNone(c.receive())
            except OSError:
                pass
        other = self.node(start=False, line_protocol="maybe")
        other.start(wait=False)
        self.assertEqual(other.process.wait(20), 2)
        other.expected_to_run = False


if __name__ == "__main__":
    main()
