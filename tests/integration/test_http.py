"""hedged's HTTP server: the demo's endpoints, probes, figures, and clients
that do not behave."""
import http.client
import json
import os
import re
import resource
import select
import socket
import struct
import subprocess
import time

from hedge_harness import (MIB, DaemonTest, SharedTest, finish, free_ports,
                           hedgectl_start, main, random_bytes, wait_until)

CONNECTIONS_MAX = 64
NAME = re.compile(r"^(hedge|process)_[a-z0-9_]+$")
SAMPLE = re.compile(r'^([a-z_0-9]+)(?:\{([a-z]+)="([^"\\]*)"\})? ([0-9.]+)$')


def connect(node, timeout=60):
    host, port = node.http.split(":")
    return socket.create_connection((host, int(port)), timeout)


def request(node, path, body=b"", method="POST", headers=None, timeout=60):
    """(status, body) of one request."""
    c = http.client.HTTPConnection(node.http, timeout=timeout)
    try:
        c.request(method, path, body, headers or {})
        r = c.getresponse()
        return r.status, r.read()
    finally:
        c.close()


def metrics(node):
    """{name: value} and {(name, label): value}, all of it checked."""
    status, page = request(node, "/metrics", method="GET")
    assert status == 200, page
    helped, typed, values = set(), {}, {}
    current = None
    for line in page.decode().splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert NAME.match(current), line
            assert current not in helped, f"{current} comes twice"
            assert line.endswith("."), line
            helped.add(current)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current, line
            typed[name] = kind
            assert (kind == "counter") == name.endswith("_total"), line
        else:
            name, _, label, value = SAMPLE.match(line).groups()
            assert name == current and name in typed, line
            key = (name, label) if label is not None else name
            assert key not in values, f"{key} comes twice"
            values[key] = float(value)
    assert helped == set(typed)
    return values


def raw(node, data, timeout=60):
    """What comes back for these bytes, up to the end of the connection."""
    with connect(node, timeout) as c:
        try:
            c.sendall(data)
            c.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # They have hung up before the end.
        out = b""
        try:
            while piece := c.recv(65536):
                out += piece
        except OSError:
            pass
        return out


class HttpTest(SharedTest):
    size = 2
    options = {"block_size": "256K", "mem_limit": "24M", "disk_limit": "64M",
               "sync_interval": "200ms", "http": True}

    def tearDown(self):
        for node in self.nodes:
            self.assertEqual(request(node, "/livez"), (200, b"ok\n"))

    def fails(self, status, node, path, *args, **kwargs):
        """The one line that says why."""
        got, body = request(node, path, *args, **kwargs)
        self.assertEqual(got, status, body)
        self.assertTrue(body.endswith(b"\n"), body)
        self.assertEqual(body.count(b"\n"), 1, body)
        return body.decode()


class Probes(HttpTest):

    def test_probes(self):
        for node in self.nodes:
            for method in ("GET", "POST", "HEAD"):
                status, body = request(node, "/readyz", method=method)
                self.assertEqual(status, 200)
                self.assertEqual(body, b"" if method == "HEAD" else b"ok\n")
            status, body = request(node, "/readyz?verbose")
            self.assertEqual(status, 200)
            self.assertEqual(body.decode().splitlines(), [
                f"[+]{c} ok" for c in ("loop", "running", "leader", "group",
                                       "engine")] + ["readyz check passed"])
            status, body = request(node, "/readyz?verbose&exclude=leader,loop")
            self.assertEqual(body.decode().splitlines()[:3], [
                "[+]loop left out", "[+]running ok", "[+]leader left out"])
            self.assertEqual(request(node, "/livez?verbose"),
                             (200, b"[+]loop ok\nlivez check passed\n"))

    def test_metrics(self):
        node = self.first
        before = metrics(node)
        self.assertEqual(before["hedge_members"], 2)
        self.assertEqual(before["hedge_memory_limit_bytes"], 24 * MIB)
        self.assertEqual(before["hedge_disk_limit_bytes"], 64 * MIB)
        self.assertEqual(
            sum(metrics(n)["hedge_is_leader"] for n in self.nodes), 1)
        data = random_bytes(30 * MIB)
        self.assert_done(node.ctl("sos", "write", "m", "--record-size", "64K",
                                  data=data))
        self.assertEqual(node.ctl("sos", "read", "m").stdout, data)
        after = metrics(node)
        rise = {k: after[k] - before.get(k, 0) for k in after}
        self.assertEqual(rise["hedge_stores"], 1)
        self.assertEqual(rise["hedge_stores_made_total"], 1)
        self.assertGreaterEqual(rise["hedge_blocks_sealed_total"], 120)
        self.assertGreater(rise["hedge_sealed_bytes_total"], 30 * MIB)
        self.assertGreaterEqual(rise["hedge_blocks_delivered_total"], 120)
        self.assertGreater(
            rise["hedge_memory_used_bytes", "stored"], 10 * MIB)
        self.assertGreater(rise["hedge_disk_used_bytes"], 4 * MIB)
        for key in ("writes", "reads"):
            self.assertGreater(rise[f"hedge_tier_{key}_total", "disk"], 20)
        self.assertGreater(
            rise["hedge_tier_written_bytes_total", "disk"], 4 * MIB)
        self.assertEqual(
            rise["hedge_grpc_calls_total", "/hedge.v1.Store/Write"], 1)
        self.assertEqual(rise["hedge_http_requests_total", "/metrics"], 2)
        leader = self.shared.leader()
        before = metrics(leader)
        for i in range(5):
            self.assertEqual(request(node, "/put", b"m %d" % i)[0], 200)
        self.assertEqual(request(node, "/get", b"m")[0], 200)
        rise = {k: v - before[k] for k, v in metrics(leader).items()}
        self.assertEqual(rise["hedge_log_puts_total"], 5)
        self.assertGreaterEqual(rise["hedge_log_revision"], 5)
        self.assertTrue(1 <= rise["hedge_log_transactions_total"] <= 5)
        self.assertGreaterEqual(
            rise["hedge_engine_calls_total", "append"], 1)
        self.assertGreater(
            rise["hedge_engine_seconds_total", "append"], 0)
        self.assertEqual(rise["hedge_engine_failures_total", "append"], 0)
        self.assertGreater(after["hedge_handlers_limit", "leader"], 0)
        self.assertGreater(after["process_resident_memory_bytes"], MIB)
        self.assertLess(abs(after["process_start_time_seconds"]
                            + after["hedge_uptime_seconds"] - time.time()), 30)
        self.assert_done(node.ctl("sos", "rm", "m"))
        wait_until("the store to be gone",
                   lambda: metrics(node)["hedge_stores"] == 0)
        self.assertEqual(metrics(node)["hedge_stores_removed_total"], 1)
        self.fails(404, node, "/nothing")
        self.assertEqual(
            metrics(node)["hedge_http_requests_total", "other"], 1)
        with socket.create_connection(("127.0.0.1", node.port)) as c:
            c.sendall(b"LDR\nXYZ\n")
            c.shutdown(socket.SHUT_WR)
            while c.recv(100):
                pass
        self.assertEqual(metrics(node)["hedge_lines_requests_total", "LDR"],
                         after["hedge_lines_requests_total", "LDR"] + 1)
        self.assertEqual(metrics(node)["hedge_lines_malformed_total"], 1)

    def test_metrics_of_semaphores(self):
        """What the leader keeps: who holds, who waits in line."""
        leader, other = self.shared.leader(), self.shared.others()[0]

        def kept(what, limit=""):
            return metrics(leader)["hedge_semaphore_kept" + limit, what]
        token = self.assert_done(leader.ctl(
            "sem", "acquire", "m", "--limit", 1, "--ttl", "60s")).out.strip()
        self.assertEqual(kept("requests"), 1)
        waiter = hedgectl_start("lock", "run", "m", "--", "true", node=other)
        wait_until("one in line", lambda: kept("requests") == 2)
        self.assertGreaterEqual(kept("sessions"), 1)
        self.assertGreaterEqual(kept("relayed"), 1)
        for what in ("requests", "sessions", "relayed"):
            self.assertGreater(kept(what, "_limit"), 1000)
        self.assert_done(leader.ctl("sem", "release", "m", token))
        self.assert_done(finish(waiter))
        wait_until("nothing to be kept", lambda: kept("requests") == 0)


class Stores(HttpTest):

    def tearDown(self):
        super().tearDown()
        for info in self.first.ctl("sos", "ls", json_output=True).objects():
            self.first.ctl("sos", "rm", info["name"])

    def test_sos(self):
        body = b"".join(b"line %d\n" % i for i in range(20_000)) + b"last"
        for i, node in enumerate(self.nodes):
            status, answer = request(node, f"/sos?name=s{i}", body)
            self.assertEqual(status, 200, answer)
            said = json.loads(answer)
            stat = node.ctl("sos", "stat", f"s{i}", json_output=True).object()
            self.assertRegex(said["generation"], r"^\d+$")
            for key in ("name", "owner", "generation", "records", "bytes",
                        "digest", "state", "tiers", "options"):
                self.assertEqual(said[key], stat[key], key)
            self.assertEqual((said["records"], said["bytes"], said["state"],
                              said["owner"]),
                             (20_001, len(body), "closed", node.id))
            for reader in self.nodes:
                self.assertEqual(
                    reader.ctl("sos", "read", f"s{i}").stdout, body)

    def test_a_store_of_another_node(self):
        self.assertEqual(request(self.first, "/sos?name=x", b"a\n")[0], 200)
        status, answer = request(self.nodes[1], "/sos?name=x", b"b\nc")
        self.assertEqual(status, 200, answer)
        said = json.loads(answer)
        self.assertEqual((said["records"], said["owner"]), (3, self.first.id))
        self.assertEqual(self.first.ctl("sos", "read", "x").stdout,
                         b"a\nb\nc")

    def test_larger_than_memory(self):
        # Streamed: 40 MB through nodes of 24 MiB, in long lines and short.
        body = b"".join((b"%d " % i) * (i % 5000) + b"\n"
                        for i in range(3000)) + random_bytes(3 * MIB)
        before = self.first.resident()
        status, answer = request(self.first, "/sos?name=big", body)
        self.assertEqual(status, 200, answer)
        self.assertEqual(json.loads(answer)["bytes"], len(body))
        self.assertEqual(self.nodes[1].ctl("sos", "read", "big").stdout, body)
        self.assertLess(self.first.resident() - before, 64 * MIB)

    def test_empty(self):
        status, answer = request(self.first, "/sos?name=e")
        self.assertEqual(status, 200, answer)
        self.assertEqual(json.loads(answer)["records"], 0)

    def test_names(self):
        for name in ("", "a/b", "..", "%00", "a%00b", "x" * 300, "%0a",
                     "%ff"):
            self.fails(400, self.first, f"/sos?name={name}", b"x")
        self.fails(400, self.first, "/sos", b"x")
        self.fails(400, self.first, "/sos?nam=x", b"x")
        status, answer = request(self.first, "/sos?name=%C3%A4%20%22b%22",
                                 b"x")
        self.assertEqual(status, 200, answer)
        self.assertEqual(json.loads(answer)["name"], "\u00e4 \"b\"")

    def test_full(self):
        text = self.fails(507, self.first, "/sos?name=full",
                          random_bytes(190 * MIB))
        self.assertIn("no room", text)
        # It has the beginning, whole.
        self.assert_done(self.first.ctl("sos", "read", "full"))

    def test_full_within_a_long_body(self):
        """Who sends more than is thrown away hears why it ends, all the
        same."""
        piece = random_bytes(MIB)
        head = (b"POST /sos?name=%s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n")
        for name, frame, piece in (
                (b"long", b"Content-Length: 9999999999", piece),
                (b"chunks", b"Transfer-Encoding: chunked",
                 b"100000\r\n" + piece + b"\r\n")):
            answer = self.until_answered(head % (name, frame), piece)
            self.assertRegex(answer, rb"^HTTP/1.1 507 [A-Z][^\r]*\r\n")
            self.assertIn(b"\r\nConnection: close\r\n", answer)
            self.assertRegex(answer, rb"\r\n\r\n[^\r\n]*no room[^\r\n]*\n$")
            self.assert_done(self.first.ctl("sos", "read", name))
            self.assertEqual(self.first.ctl(
                "sos", "stat", name, json_output=True).object()["state"],
                "closed")
            self.assert_done(self.first.ctl("sos", "rm", name))
            self.wait_unused()

    def until_answered(self, head, piece):
        """Sends until there is an answer, and only then reads it."""
        with connect(self.first) as c:
            c.sendall(head)
            for _ in range(1000):
                c.sendall(piece)
                if select.select([c], [], [], 0)[0]:
                    break
            answer = b""
            while not answer.endswith(b"\n") or b"\r\n\r\n" not in answer \
                    or answer.endswith(b"\r\n\r\n"):
                more = c.recv(65536)
                self.assertNotEqual(more, b"", answer)
                answer += more
            return answer

    def test_curl_shows_why(self):
        path = os.path.join(self.dir, "body")
        with open(path, "wb") as f:
            for i in range(300):
                f.write(random_bytes(MIB, i))
        for args in (["--data-binary", f"@{path}"], ["-T", path],
                     ["-H", "Expect:", "-T", path],
                     ["-H", "Transfer-Encoding: chunked", "-T", path]):
            done = subprocess.run(
                ["curl", "-sS", "-w", "%{http_code}", *args,
                 f"http://{self.first.http}/sos?name=curl"],
                capture_output=True, text=True, check=False, timeout=120)
            self.assertEqual((done.returncode, done.stderr), (0, ""), args)
            self.assertRegex(done.stdout, r"no room[^\n]*\n507$")
            self.assert_done(self.first.ctl("sos", "rm", "curl"))
            self.wait_unused()

    def test_a_body_that_does_not_end(self):
        """It is refused, told so, and not listened to for ever."""
        for pause in (0, 0.5):
            with connect(self.first) as c:
                c.sendall(b"POST /sos?name=a/b HTTP/1.1\r\nHost: x\r\n"
                          b"Content-Length: 9999999999\r\n\r\n" + bytes(1000))
                self.assertEqual(c.recv(12), b"HTTP/1.1 400")
                sent = 0
                try:
                    while sent < 1 << 30:
                        time.sleep(pause)
                        sent += c.send(b"x" if pause else bytes(MIB))
                except OSError:
                    pass
                self.assertLess(sent, 128 * MIB)
        wait_until("its thread to end", lambda: metrics(
            self.first)["hedge_http_connections"] == 1)

    def test_a_client_that_leaves(self):
        for i in range(5):
            with connect(self.first) as c:
                c.sendall(b"POST /sos?name=gone%d HTTP/1.1\r\nHost: x\r\n"
                          b"Content-Length: 1000000\r\n\r\nabc\nde" % i)
                time.sleep(0.01 * i)
        wait_until("the writers to be gone", lambda: metrics(
            self.first)["hedge_writers"] == 0)


class Log(HttpTest):

    def test_put_get(self):
        put, get = self.nodes
        for key, value in ((b"k", b"v"), (b"k", b"a value\nof two lines"),
                           (b"empty", b""), (b"bytes", bytes(range(256))),
                           (b"\xff\x01", b" two spaces before "),
                           (b"big", random_bytes(3 * MIB))):
            self.assertEqual(request(put, "/put", key + b" " + value),
                             (200, b""))
            for node in self.nodes:
                self.assertEqual(request(node, "/get", key), (200, value))
            put, get = get, put
        for method in ("GET", "PUT"):
            self.assertEqual(
                request(self.first, "/get", b"empty", method=method),
                (200, b""))
        versions = self.first.ctl("get", "k", "--all", json_output=True)
        self.assertEqual(len(versions.objects()), 2)

    def test_what_is_refused(self):
        for body in (b"", b"key", b" value", b"__hedge/x y", b"\0 y",
                     b"k" * 600 + b" v"):
            self.fails(400, self.first, "/put", body)
        self.fails(413, self.first, "/put", b"k " + bytes(17 * MIB))
        self.fails(404, self.first, "/get", b"nothing")
        for key in (b"", b"__hedge/x", b"k" * 600):
            status, body = request(self.first, "/get", key)
            self.assertIn(status, (400, 404), body)
            self.assertEqual(body.count(b"\n"), 1)


class Messages(HttpTest):

    def test_send(self):
        leader = self.shared.leader().id.encode()
        for node in self.nodes:
            for message in (b"hello", b"", b"\0\xff\n", random_bytes(MIB)):
                self.assertEqual(request(node, "/send", message),
                                 (200, leader + b": " + message))
            self.assertEqual(request(node, "/send", b"x", method="GET"),
                             (200, leader + b": x"))

    def test_broadcast(self):
        ids = sorted(n.id for n in self.nodes)
        for node in self.nodes:
            status, body = request(node, "/broadcast", b"a\nb\r\n\tc")
            self.assertEqual(status, 200, body)
            self.assertEqual(sorted(body.decode().splitlines()), [
                f"{i}\t{i}: a\\nb\\r\\n\tc" for i in ids])


    def test_streams(self):
        leader = self.shared.leader().id
        for node in self.nodes:
            self.assertEqual(request(node, "/streamsend", b"one\ntwo"),
                             (200, f"{leader}: one\\ntwo\n".encode()))
            status, body = request(node, "/streambroadcast", b"x")
            self.assertEqual(status, 200, body)
            self.assertEqual(sorted(body.decode().splitlines()),
                             sorted(f"{n.id}: x" for n in self.nodes))
            self.assertEqual(request(node, "/streamsend", b"")[0], 200)


class Manners(HttpTest):

    def test_unknown(self):
        text = self.fails(404, self.first, "/put/x")
        self.assertIn("/metrics", text)
        self.fails(404, self.first, "/")
        self.fails(404, self.first, "//livez")
        self.fails(404, self.first, "/livez/")

    def test_methods(self):
        """What a path does not do is said, and not done."""
        text = self.fails(404, self.first, "/")
        paths = re.findall(r"/[a-z]+", text)
        self.assertIn("/sos", paths)
        for path in paths:
            do = path not in ("/get", "/livez", "/readyz", "/metrics")
            for method in ["DELETE", "PATCH", "OPTIONS", "FROB", "get"] \
                    + ["HEAD"] * do:
                c = http.client.HTTPConnection(self.first.http, timeout=60)
                c.request(method, path + "?name=x", b"k v")
                r = c.getresponse()
                self.assertEqual(r.status, 405, (method, path))
                allowed = r.getheader("Allow").split(",")
                self.assertNotIn(method, allowed)
                self.assertIn("POST", allowed)
                if method != "HEAD":
                    self.assertEqual(r.read().count(b"\n"), 1)
                c.close()
        self.assert_status(self.first.ctl("get", "k"), 3)
        self.assert_status(self.first.ctl("sos", "stat", "x"), 3)
        self.fails(404, self.first, "/nope", method="DELETE")

    def test_web_pages(self):
        self.fails(403, self.first, "/sos?name=x", b"x",
                   headers={"Origin": "http://example.com"})
        self.fails(403, self.first, "/metrics", method="GET",
                   headers={"Sec-Fetch-Site": "cross-site"})

    def test_junk(self):
        node = self.first
        for data in (b"\0\0\0\0", b"GET", b"GET /livez\r\n\r\n", b"\r\n" * 50,
                     b"GET /livez HTTP/9.9\r\n\r\n", b" / HTTP/1.1\r\n\r\n",
                     b"GET /livez HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                     b"GET /livez HTTP/1.1\r\nContent-Length: 9999999999999"
                     b"99999999999\r\n\r\n",
                     b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
                     b"chunked\r\n\r\nzz\r\n",
                     b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
                     b"chunked\r\n\r\nffffffffffffffff\r\nabc",
                     b"GET /livez?%zz=%&&&=?=%00 HTTP/1.1\r\nHost: x\r\n\r\n",
                     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                     *(random_bytes(5000, i) for i in range(20))):
            raw(node, data)
            self.assertEqual(request(node, "/livez")[0], 200)

    def test_bodies_that_end_in_two_places(self):
        """A proxy before the node may see another end than the node."""
        for path in ("/put", "/get", "/send", "/broadcast", "/streamsend",
                     "/streambroadcast", "/sos?name=twice", "/livez",
                     "/readyz", "/metrics"):
            for status, framing in (
                    (b"400", b"Content-Length: 3\r\nContent-Length: 5"),
                    (b"400", b"Content-Length: 3\r\nContent-Length: 3"),
                    (b"400", b"Content-Length: 3\r\n"
                             b"Transfer-Encoding: chunked"),
                    (b"400", b"Transfer-Encoding: chunked\r\n"
                             b"content-length: 3"),
                    (b"400", b"Transfer-Encoding: chunked\r\n"
                             b"Transfer-Encoding: chunked"),
                    (b"501", b"Transfer-Encoding: gzip"),
                    (b"501", b"Transfer-Encoding: gzip, chunked")):
                with connect(self.first, 20) as c:
                    c.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n"
                              b"3\r\nk v\r\n0\r\n\r\n"
                              % (path.encode(), framing))
                    head, _, body = c.recv(65536).partition(b"\r\n\r\n")
                    while not body:
                        body = c.recv(65536)
                self.assertEqual(head.split()[1], status, (path, framing))
                self.assertEqual(body.count(b"\n"), 1, body)
        self.fails(404, self.first, "/get", b"3\r\nk")
        self.assert_status(self.first.ctl("sos", "stat", "twice"), 3)

    def test_headers_have_a_bound(self):
        for head in (b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n",
                     b"GET /livez HTTP/1.1\r\nA: " + b"x" * 200_000 + b"\r\n",
                     b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * 50_000):
            answer = raw(self.first, head + b"Host: x\r\n\r\n")
            self.assertRegex(answer, rb"^(HTTP/1.1 (4|5)|$)")

    def test_bodies_have_a_bound(self):
        before = self.first.resident()
        self.fails(413, self.first, "/livez",
                   headers={"Content-Length": str(65 * MIB)})
        answer = raw(self.first, b"POST /livez HTTP/1.1\r\nHost: x\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n"
                     + (b"100000\r\n" + b"x" * MIB + b"\r\n") * 70
                     + b"0\r\n\r\n")
        self.assertTrue(answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 429")),
                        answer[:200])
        self.assertLess(self.first.resident() - before, 96 * MIB)

    def test_keep_alive(self):
        c = http.client.HTTPConnection(self.first.http, timeout=30)
        for _ in range(50):
            c.request("POST", "/livez", b"x" * 1000)
            r = c.getresponse()
            self.assertEqual((r.status, r.read()), (200, b"ok\n"))
        c.close()


class Crowd(DaemonTest):

    def test_slow_clients_make_way(self):
        node = self.node(http=True)
        slow = [connect(node) for _ in range(CONNECTIONS_MAX)]
        for c in slow:
            c.sendall(b"GET /livez HT")

        def evicted():
            try:
                return metrics(node)["hedge_http_evicted_total"] >= 1
            except OSError:
                return False  # Not yet: they are given a moment.
        wait_until("somebody to make way", evicted)
        for c in slow:
            c.close()

    def test_aborted_connections(self):
        node = self.node(http=True)
        for i in range(200):
            c = connect(node)
            c.sendall(b"POST /sos?name=x HTTP/1.1\r\nContent-Length: 9\r\n\r\n"
                      [:i])
            c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                         struct.pack("ii", 1, 0))
            c.close()
        self.assertEqual(request(node, "/livez")[0], 200)

    def test_bodies_that_are_cut(self):
        """What is left of a body whose sender has gone is no request."""
        heard = os.path.join(self.dir, "heard")
        node = self.node(http=True, leader_handler=f"tee -a {heard}",
                         broadcast_handler=f"tee -a {heard}")
        for path in ("/put", "/send", "/broadcast", "/streamsend",
                     "/streambroadcast", "/sos?name=cut"):
            for frame in (b"Content-Length: 100\r\n\r\n",
                          b"Transfer-Encoding: chunked\r\n\r\n6\r\n",
                          b"Transfer-Encoding: chunked\r\n\r\n40\r\n"):
                end = b"\r\n" if frame.endswith(b"\n6\r\n") else b""
                answer = raw(node, f"POST {path} HTTP/1.1\r\nHost: x\r\n"
                             .encode() + frame + b"k cut\n" + end)
                self.assertFalse(answer.startswith(b"HTTP/1.1 2"), answer)
        self.assertEqual(request(node, "/send", b"whole"), (200, b"whole"))
        with open(heard, "rb") as f:
            self.assertEqual(f.read(), b"whole")
        self.assertEqual(request(node, "/get", b"k")[0], 404)
        self.assertEqual(node.ctl("sos", "stat", "cut", json_output=True)
                         .object()["state"], "aborted")

    def test_running_out_of_descriptors(self):
        """Taking connections goes on when there are descriptors again."""
        node = self.node(http=True)
        folder = f"/proc/{node.pid}/fd"
        most = len(os.listdir(folder)) + 10
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (most, most))
        clients = [connect(node) for _ in range(40)]
        wait_until("descriptors to run out",
                   lambda: len(os.listdir(folder)) == most)
        time.sleep(0.3)  # It is told so a few times.
        for c in clients:
            c.close()
        for _ in range(3):
            self.assertEqual(request(node, "/livez")[0], 200)

    def test_stopping(self):
        node = self.node(http=True)
        idle = [connect(node) for _ in range(5)]
        idle[0].sendall(b"POST /sos?name=x HTTP/1.1\r\nContent-Length: 9"
                        b"\r\n\r\nabc\n")
        self.assertEqual(request(node, "/livez")[0], 200)
        self.assertEqual(node.terminate(), 0)
        for c in idle:
            c.settimeout(10)
            try:
                self.assertEqual(c.recv(100), b"")
            except ConnectionResetError:
                pass
            c.close()

    def test_not_ready(self):
        # The leader has died, and its lease has long to run.
        leader = self.node(lease="60s")
        node = self.node(http=True, lease="60s")
        wait_until("the node to be ready",
                   lambda: request(node, "/readyz")[0] == 200)
        leader.kill()
        wait_until("the node to miss its leader",
                   lambda: request(node, "/readyz")[0] == 503)
        self.assertEqual(request(node, "/livez")[0], 200)
        body = request(node, "/readyz")[1]
        self.assertIn(b"failed: ", body)
        self.assertIn(b"readyz check failed", body)
        self.assertEqual(
            request(node, "/readyz?exclude=group&exclude=leader")[0], 200)

    def test_messages_that_fail(self):
        node = self.node(http=True, leader_handler="false",
                         broadcast_handler="sh -c 'echo sorry >&2; exit 4'")
        status, body = request(node, "/send", b"x")
        self.assertEqual(status, 502, body)
        self.assertEqual(body.count(b"\n"), 1, body)
        status, body = request(node, "/broadcast", b"x")
        self.assertEqual(status, 200, body)
        self.assertTrue(body.startswith(node.id.encode() + b"\t"), body)
        self.assertEqual(body.count(b"\n"), 1, body)

    def test_answers_that_nobody_takes_count(self):
        node = self.node(http=True, mem_limit="16M", message_limit="24M",
                         broadcast_handler="head -c 16000000 /dev/zero")
        self.assertEqual(request(node, "/broadcast", b"x")[0], 200)
        before, clients = node.resident(), []
        for _ in range(8):
            c = connect(node)
            c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            c.sendall(b"POST /broadcast HTTP/1.1\r\nHost: x\r\n"
                      b"Content-Length: 1\r\n\r\nx")
            self.assertEqual(c.recv(8), b"HTTP/1.1")
            clients.append(c)
        self.assertLess(node.resident() - before, 48 * MIB)
        self.assertEqual(request(node, "/livez")[0], 200)
        for c in clients:
            c.close()
        wait_until("the room to be given back",
                   lambda: node.status().message_used == 0)

    def refused(self, text, **options):
        node = self.node(start=False, **options)
        node.start(wait=False)
        node.expected_to_run = False
        self.assertNotEqual(node.process.wait(20), 0)
        self.assertIn(text, node.log_tail(5))

    def test_addresses(self):
        self.refused("--insecure", http=f"0.0.0.0:{free_ports()}")
        self.refused("HOST:PORT", http="127.0.0.1")
        self.refused("HOST:PORT", http="localhost:80")
        first = self.node(http=True)
        self.refused("Address already in use", http=first.http)
        self.refused(f"{first.http} (end what serves there, or choose",
                     http=first.http)


if __name__ == "__main__":
    main()
