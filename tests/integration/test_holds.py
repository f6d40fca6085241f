"""What must hold of a store in the large: a record of 1 GiB, a crowd of
writers and readers, peers that are stopped for long, what is left of a life,
and the shapes that scripts rely on."""
import hashlib
import os
import pty
import select
import subprocess
import threading
import time

from hedge_harness import (GIB, HEDGED, KIB, MIB, DaemonTest, Sampler,
                           SharedTest, finish, hedgectl_start, main,
                           random_bytes, report, start_cluster, wait_until)

PROMISE = 64 * MIB  # Beside --mem-limit.


def feed(process, pieces, pause=0.0):
    """Feed on a thread: join() it, then finish(process)."""
    def run():
        try:
            for piece in pieces:
                process.stdin.write(piece)
                process.stdin.flush()
                time.sleep(pause)
            process.stdin.close()
        except (BrokenPipeError, ValueError):
            pass
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


class Gibibyte(DaemonTest):
    """One record of 1 GiB through two arenas of 16 blocks of 64 KiB."""

    timeout = 200

    def test_one_record(self):
        nodes = [self.node(start=False, block_size="64K", mem_limit="1M",
                           disk_limit="640M", disk_reserve="1M",
                           sync_interval="200ms") for _ in range(2)]
        start_cluster(nodes)
        piece = random_bytes(8 * MIB)
        wanted = hashlib.sha256()
        for _ in range(128):
            wanted.update(piece)
        with Sampler(lambda: [n.resident() for n in nodes]) as peak:
            writer = hedgectl_start("sos", "write", "x", "--record-size", "1G",
                                    "--compress", "none", "-o", "json",
                                    node=nodes[0])
            feeder = feed(writer, (piece for _ in range(128)))
            feeder.join(120)
            writer.stdin = None
            info = self.assert_done(finish(writer, timeout=120)).object()
            self.assertEqual((info["records"], info["bytes"]), (1, GIB))
            self.assertEqual({t["node"] for t in info["tiers"]},
                             {n.id for n in nodes})
            for node in nodes:
                self.assertEqual(self.digest(node), wanted.hexdigest())
        for node, value in zip(nodes, peak.values):
            report(f"1 GiB in one record: {node.id}",
                   resident=f"{value / MIB:.1f}MiB")
            self.assertLessEqual(value, MIB + PROMISE)

    @staticmethod
    def digest(node):
        reader = hedgectl_start("sos", "read", "x", node=node)
        got = hashlib.sha256()
        while chunk := reader.stdout.read(MIB):
            got.update(chunk)
        result = finish(reader)
        return got.hexdigest() if result.status == 0 else str(result)


class Crowd(SharedTest):
    """Everybody at one store at once, over three small nodes."""

    size = 3
    options = {"block_size": "256K", "mem_limit": "8M", "disk_limit": "32M",
               "disk_reserve": "1M", "sync_interval": "200ms"}

    def test_writers_followers_and_an_abandoned_reader(self):
        """All followers get the same bytes, in which each writer's records
        are whole and in their order."""
        keeper = hedgectl_start("sos", "write", "x", node=self.first)
        self.addCleanup(self.first.ctl, "sos", "rm", "x")
        keeper.stdin.write(b"keeper 0\n")
        keeper.stdin.flush()
        wait_until("the store", lambda: self.first.ctl(
            "sos", "stat", "x").status == 0, 10)
        followers = [hedgectl_start("sos", "read", "x", "--follow", node=node)
                     for node in self.nodes]
        abandoned = hedgectl_start("sos", "read", "x", "--follow",
                                   node=self.nodes[1], bufsize=0)
        results = [None] * len(followers)

        def follow(i):
            results[i] = finish(followers[i], timeout=100)
        threads = [threading.Thread(target=follow, args=(i,))
                   for i in range(len(followers))]
        for thread in threads:
            thread.start()
        self.assertEqual(abandoned.stdout.read(6), b"keeper")
        inputs = [[b"%d %d %s\n" % (w, i, b"x" * (i * 37 % 900))
                   for i in range(12_000)] for w in range(6)]
        writers = [hedgectl_start("sos", "write", "x", "--append",
                                  node=self.nodes[w % 3])
                   for w in range(len(inputs))]
        feeders = [feed(p, [b"".join(lines[k:k + 500])
                            for k in range(0, len(lines), 500)])
                   for p, lines in zip(writers, inputs)]
        for feeder, writer in zip(feeders, writers):
            feeder.join(100)
            writer.stdin = None
            self.assert_done(finish(writer, timeout=100))
        self.assert_done(finish(keeper))
        for thread in threads:
            thread.join()
        for result in results:
            self.assert_done(result)
            self.assertTrue(result.stdout == results[0].stdout,
                            "followers saw different orders")
        lines = results[0].stdout.splitlines(keepends=True)
        self.assertEqual(len(lines), 1 + sum(map(len, inputs)))
        for w, wanted in enumerate(inputs):
            mine = [r for r in lines if r.startswith(b"%d " % w)]
            self.assertTrue(mine == wanted, f"records of writer {w}")
        # Whoever does not read on costs nobody anything.
        abandoned.kill()
        finish(abandoned)
        again = self.assert_done(self.nodes[2].ctl("sos", "read", "x"))
        self.assertTrue(again.stdout == results[0].stdout)


class Stopped(DaemonTest):
    """SIGSTOP of a peer for 20 s while it is written to."""

    options = {"block_size": "256K", "mem_limit": "8M", "disk_limit": "4M",
               "disk_reserve": "1M", "sync_interval": "200ms"}

    def write_beside(self, *peers):
        """A write during which the first of `peers` is stopped."""
        owner = self.node(**self.options)
        peers = [self.node(**{**self.options, **p}) for p in peers]

        def known():
            rows = owner.ctl("members", json_output=True).objects()
            return len(rows) == 1 + len(peers) and all(
                r["mem_limit"] for r in rows)
        wait_until("the nodes to know each other", known, 15)
        data = random_bytes(24 * MIB)
        writer = hedgectl_start("sos", "write", "x", "--record-size", "64K",
                                "-o", "json", node=owner)
        feeder = feed(writer, [data[at:at + 256 * KIB] for at in
                               range(0, len(data), 256 * KIB)], 0.02)

        def lent():
            me = getattr(peers[0].status(), "self")
            return me.mem_lent + me.disk_lent > MIB
        wait_until("blocks on the peer", lent, 10)
        peers[0].suspend()
        stopped = time.monotonic()
        timer = threading.Timer(20, peers[0].resume)
        timer.start()
        feeder.join(60)
        self.assertFalse(feeder.is_alive(), "the write hangs")
        writer.stdin = None
        result = finish(writer, timeout=60)
        report("a write beside a stopped peer",
               seconds=f"{time.monotonic() - stopped:.1f}")
        timer.join()
        self.assert_done(result)
        self.assertEqual(result.object()["bytes"], len(data))
        for node in [owner, *peers]:
            wait_until(f"all of it from {node.id}", lambda node=node: node.ctl(
                "sos", "read", "x").stdout == data, 20)
        self.assert_done(owner.ctl("sos", "rm", "x"))
        self.wait_unused()

    def test_with_another(self):
        self.write_beside({"mem_limit": "40M", "disk_limit": "16M"},
                          {"mem_limit": "24M", "disk_limit": "16M"})

    def test_the_only_one(self):
        """Nobody else has room: back-pressure until it goes on."""
        self.write_beside({"mem_limit": "40M", "disk_limit": "16M"})


class Lives(DaemonTest):
    options = Stopped.options

    @staticmethod
    def files(node):
        found = set()
        for folder, _, names in os.walk(node.folder):
            found.update(os.path.relpath(os.path.join(folder, name),
                                         node.folder) for name in names)
        return found

    def test_each_in_turn(self):
        """kill -9 and a restart of every node, the leader first: no file of
        the life before is left, and the others go on."""
        nodes = [self.node(start=False, **self.options) for _ in range(3)]
        cluster = start_cluster(nodes)
        fresh = {node.id: self.files(node) for node in nodes}
        order = [cluster.leader(), *cluster.others()]
        data = random_bytes(20 * MIB)
        for round_, node in enumerate(order):
            other = order[(round_ + 1) % 3]
            self.assert_done(node.ctl("sos", "write", f"a{round_}", data=data))
            self.assertNotEqual(self.files(node), fresh[node.id])
            node.kill()
            name = f"b{round_}"
            self.assert_done(other.ctl("sos", "write", name, "--timeout",
                                       "20s", data=data[:MIB]))
            node.start()
            self.assertEqual(self.files(node), fresh[node.id])
            self.assertEqual(self.used([node]), 0)
            cluster.wait_members(3)
            for reader in nodes:
                got = self.assert_done(reader.ctl("sos", "read", name)).stdout
                self.assertTrue(got == data[:MIB], reader.id)
            self.assert_done(node.ctl("sos", "rm", name))
            self.wait_unused()

    def test_blocks_of_a_dead_owner_are_kept_for_its_ttl(self):
        """max(--block-lease, TTL) + 5 s: here the TTL is the longer one."""
        options = {**self.options, "lease": "2s", "block_lease": "1s"}
        owner = self.node(**options)
        peer = self.node(**{**options, "mem_limit": "40M"})
        wait_until("the peer to be known", lambda: len(owner.ctl(
            "members", json_output=True).objects()) == 2, 15)
        self.assert_done(owner.ctl("sos", "write", "x", "--ttl", "8s",
                                   data=random_bytes(20 * MIB)))
        self.assertGreater(self.used([peer]), 4 * MIB)
        owner.kill()
        killed = time.monotonic()
        # By the lease of the blocks alone they would have gone after 6 s.
        time.sleep(9.5)
        self.assertGreater(self.used([peer]), 4 * MIB)
        self.wait_unused([peer], 20)
        report("blocks of a dead owner, dropped after",
               seconds=f"{time.monotonic() - killed:.1f}")


class Shapes(SharedTest):
    """What scripts rely on: names, types, defaults, where things are said."""

    options = {"block_size": "256K", "mem_limit": "8M", "disk_limit": "8M",
               "disk_reserve": "1M"}

    def check_store(self, info, name):
        for key, kind in (("name", str), ("owner", str), ("generation", str),
                          ("records", int), ("bytes", int), ("digest", str),
                          ("state", str), ("tiers", list)):
            self.assertIs(type(info[key]), kind, key)
        self.assertEqual((info["name"], info["owner"], info["state"]),
                         (name, self.first.id, "closed"))
        self.assertRegex(info["digest"], "^[0-9a-f]{32}$")
        self.assertRegex(info["generation"], r"^\d+$")
        self.assertRegex(info["expires_at"],
                         r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
        for tier in info["tiers"]:
            self.assertEqual(tier["node"], self.first.id)
            self.assertIn(tier["tier"], ("memory", "disk"))
            for key in ("blocks", "bytes", "stored_bytes"):
                self.assertIs(type(tier[key]), int, key)
        self.assertEqual(sum(t["bytes"] for t in info["tiers"]),
                         info["bytes"])

    def test_defaults_are_told(self):
        """Each flag with its default."""
        said = subprocess.run([HEDGED, "--help"], capture_output=True,
                              text=True, check=True, timeout=10).stdout
        for flag, default in (
                ("--listen HOST:PORT", "(127.0.0.1:8080)"),
                ("--grpc HOST:PORT", "port + 1"), ("--http HOST:PORT", "(off)"),
                ("--group NAME", "(default)"),
                ("--engine URL", "lmdb:STATE/GROUP/engine"),
                ("--data DIR", "STATE/GROUP/ID"),
                ("--mem-limit SIZE", "a quarter of"),
                ("--disk-limit SIZE", "10G"),
                ("--disk-reserve SIZE", "1G or 5 %, at most half"),
                ("--lend-mem SIZE", "all of it"),
                ("--lend-disk SIZE", "all of it"),
                ("--message-limit SIZE", "(64M)"), ("--block-size SIZE", "1M"),
                ("--lease DUR", "(10s)"), ("--sync-interval DUR", "(1s)"),
                ("--block-lease DUR", "two leases"),
                ("--io auto|uring|threads", "(auto)"),
                ("--leader-handler CMD", "ID: MESSAGE"),
                ("--broadcast-handler CMD", ""),
                ("--line-protocol on|off", "(on)"), ("--config FILE", ""),
                ("--check-config", ""), ("--log-level LEVEL", "(info)"),
                ("--log-format text|json", "(text)"), ("--version", "")):
            row, = [r for r in said.splitlines()
                    if r.strip().startswith(flag + " ")]
            self.assertIn(default, row)
        said = self.assert_done(self.first.ctl("--help")).out
        for text in ("127.0.0.1:8080", "$HEDGE_NODE", "Default 15s",
                     "Default table"):
            self.assertIn(text, said)

    def test_stores(self):
        for name in ("one", "two"):
            self.addCleanup(self.first.ctl, "sos", "rm", name)
            written = self.first.ctl(
                "sos", "write", name, data=random_bytes(4 * MIB),
                json_output=True).object()
            self.check_store(written, name)
            stat = self.first.ctl("sos", "stat", name,
                                  json_output=True).object()
            self.check_store(stat, name)
            self.assertEqual(stat["digest"], written["digest"])
        listed = self.first.ctl("sos", "ls", json_output=True).objects()
        self.assertEqual(sorted(i["name"] for i in listed), ["one", "two"])
        for info in listed:
            self.check_store(info, info["name"])

    def test_nothing_but_results_on_stdout(self):
        self.addCleanup(self.first.ctl, "sos", "rm", "x")
        for args, data, out in (
                (("sos", "read", "nothing"), b"", b""),
                (("sos", "rm", "nothing"), b"", b""),
                (("sos", "write", "x"), b"one\n", None),
                (("sos", "write", "x"), b"two\n", b""),
                (("sos", "read", "x"), b"", b"one\n")):
            result = self.first.ctl(*args, data=data)
            if out is not None:
                self.assertEqual(result.stdout, out, str(result))

    def test_members_and_leader(self):
        rows = self.first.ctl("members", json_output=True).objects()
        self.assertEqual([(r["id"], r["leader"]) for r in rows],
                         [(self.first.id, True)])
        for key in ("mem_free", "disk_free"):
            self.assertIs(type(rows[0][key]), int)
        leader = self.first.ctl("leader", json_output=True).object()
        self.assertEqual(leader["id"], self.first.id)
        self.assertIs(type(leader["token"]), int)
        self.assertIs(type(leader["lease_ms"]), int)

    def on_terminal(self, args, data=None, pause=0.0):
        """What a command says on stderr when that is a terminal."""
        ours, theirs = pty.openpty()
        process = hedgectl_start(*args, node=self.first, stderr=theirs)
        os.close(theirs)
        self.addCleanup(os.close, ours)
        feeder = feed(process, data or [], pause)
        said = b""
        try:
            while process.poll() is None or select.select([ours], [], [],
                                                          0.2)[0]:
                if process.stdout in select.select(
                        [ours, process.stdout], [], [], 0.2)[0]:
                    os.read(process.stdout.fileno(), MIB)
                if select.select([ours], [], [], 0)[0]:
                    said += os.read(ours, 4096)
        except OSError:
            pass  # The other end has been closed.
        feeder.join(20)
        process.stdin = None
        self.assertEqual(finish(process).status, 0)
        return said.decode()

    def test_progress_on_a_terminal(self):
        """Bytes, records and rate, bytes per tier; nothing elsewhere."""
        self.addCleanup(self.first.ctl, "sos", "rm", "x")
        data = random_bytes(128 * KIB)
        said = self.on_terminal(("sos", "write", "x", "--record-size", "64K"),
                                [data] * 64, 0.05)
        self.assertRegex(said, r"\r\d+\.\d+ MiB, \d+ records, [\d.]+ \SiB/s")
        self.assertRegex(said, r"memory [\d.]+ \SiB")
        self.assertIn("is kept until", said)
        quiet = self.first.ctl("sos", "read", "x")
        self.assertEqual((quiet.stderr, quiet.stdout), (b"", data * 64))


if __name__ == "__main__":
    main()
