"""One leader, one list of members, on every node, through whatever ends."""
import json
import os
import signal
import socket
import subprocess
import threading
import time

import grpc

from hedge_harness import (HEDGED, MIB, Cluster, DaemonTest, finish,
                           free_ports, hedgectl, hedgectl_start, main,
                           random_bytes, report, start_cluster, stubs,
                           wait_until)
from test_http import metrics

LEASE = 3.0
NOISE = 1.0  # What a busy machine of two cores may add to a promised time.


class Watch:
    """Asks nodes who leads, again and again; remembers when it changed and
    whether two ever held the lock at once."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.seen = {}  # id -> (time, leader, token)
        self.holders = []  # (asked, answered, id, token)
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,),
                                          daemon=True) for n in nodes]

    def _run(self, node):
        empty = stubs()[0].Empty()
        channel = grpc.insecure_channel(
            node.grpc, options=[("grpc.use_local_subchannel_pool", 1),
                                ("grpc.enable_http_proxy", 0)])
        stub = stubs()[1].ClusterStub(channel)
        while not self._end.is_set():
            asked = time.monotonic()
            try:
                s = stub.Status(empty, timeout=1)
            except grpc.RpcError:
                time.sleep(0.02)
                continue
            answered = time.monotonic()
            me = getattr(s, "self")
            if me.leader:
                self.holders.append((asked, answered, me.id, s.token))
            before = self.seen.get(node.id)
            if before is None or before[1:] != (s.leader, s.token):
                self.seen[node.id] = (answered, s.leader, s.token)
            time.sleep(0.005)
        channel.close()

    def __enter__(self):
        for t in self._threads:
            t.start()
        wait_until("first answers", lambda: len(self.seen) == len(self.nodes),
                   10)
        return self

    def __exit__(self, *_):
        self._end.set()
        for t in self._threads:
            t.join()

    def wait_new_leader(self, old, token, nodes, timeout):
        """When all of `nodes` name one leader with a higher token."""
        def agreed():
            views = [self.seen.get(n.id) for n in nodes]
            if any(v is None or v[2] <= token or not v[1] or v[1] == old
                   for v in views):
                return None
            if len({v[1:] for v in views}) != 1:
                return None
            return max(v[0] for v in views), views[0][1]
        return wait_until("another leader on every node", agreed, timeout,
                          0.005)

    def two_at_once(self):
        """Holds of two nodes that overlap for certain: a node that says so
        twice has held the lock from the first answer to the last question."""
        tokens = {}
        for asked, answered, node, token in self.holders:
            first, last = tokens.get((node, token), (answered, asked))
            tokens[node, token] = (min(first, answered), max(last, asked))
        found = []
        holds = sorted((first, last, key) for key, (first, last)
                       in tokens.items())
        for i, (_, last, key) in enumerate(holds):
            for first2, last2, key2 in holds[i + 1:]:
                # Both held the lock from first2 to min(last, last2).
                if key2[0] != key[0] and first2 < min(last, last2):
                    found.append((key, key2, min(last, last2) - first2))
        return found


class Election(DaemonTest):

    def start(self, n=3, **options):
        cluster = self.cluster(n, lease=f"{LEASE:g}s", **options)
        leader = cluster.leader()
        return cluster, leader, leader.status().token

    def check_agreed(self, cluster):
        leader = cluster.leader()
        names = sorted(n.id for n in cluster.running())
        for node in cluster.running():
            reply = node.ctl("leader", json_output=True).object()
            self.assertEqual(reply["id"], leader.id)
            rows = [json.loads(r) for r in self.assert_done(
                node.ctl("members", json_output=True)).out.splitlines()]
            self.assertEqual(sorted(r["id"] for r in rows), names)
            self.assertEqual([r["id"] for r in rows if r["leader"]],
                             [leader.id])
        return leader

    def test_agreement(self):
        cluster, leader, token = self.start()
        self.assertIs(self.check_agreed(cluster), leader)
        self.assertGreater(token, 0)
        reply = leader.ctl("leader", json_output=True).object()
        self.assertEqual(reply["token"], token)
        self.assertEqual(reply["lease_ms"], LEASE * 1000)

    def test_leader_killed(self):
        cluster, leader, token = self.start()
        rest = cluster.others()
        with Watch(rest) as watch:
            start = time.monotonic()
            leader.kill()
            when, _ = watch.wait_new_leader(leader.id, token, rest, 20)
        took = when - start
        report("leader killed", seconds=f"{took:.3f}")
        self.assertLess(took, LEASE + 1 + NOISE)
        cluster.wait_members(2)
        self.check_agreed(cluster)

    def test_leader_stopped_cleanly(self):
        cluster, leader, token = self.start()
        rest = cluster.others()
        with Watch(rest) as watch:
            start = time.monotonic()
            leader.process.send_signal(signal.SIGTERM)
            when, _ = watch.wait_new_leader(leader.id, token, rest, 20)
        took = when - start
        report("leader stopped", seconds=f"{took:.3f}")
        self.assertLess(took, 0.5 + NOISE)
        self.assertEqual(leader.terminate(), 0)  # It has ended, or will.
        cluster.wait_members(2)
        self.check_agreed(cluster)

    def test_leader_frozen(self):
        cluster, leader, token = self.start()
        rest = cluster.others()
        with Watch(cluster.nodes) as watch:
            start = time.monotonic()
            leader.suspend()
            when, _ = watch.wait_new_leader(leader.id, token, rest, 20)
            report("leader frozen", seconds=f"{when - start:.3f}")
            self.assertLess(when - start, LEASE + 1 + NOISE)
            leader.resume()
            # It learns that it leads no more, and comes back as a member.
            wait_until("the old leader to follow",
                       lambda: watch.seen[leader.id][2] > token, 10)
            cluster.wait_members(3)
            self.check_agreed(cluster)
        self.assertEqual(watch.two_at_once(), [])
        self.assertGreater(len(watch.holders), 10)

    def test_leaders_frozen_again_and_again(self):
        """Short freezes around the lease's end: the lock is never held by
        two."""
        cluster, _, _ = self.start(sync_interval="200ms")
        with Watch(cluster.nodes) as watch:
            for seconds in (LEASE - 0.7, LEASE - 0.2, LEASE + 0.3):
                leader = cluster.leader()
                leader.suspend()
                time.sleep(seconds)
                leader.resume()
                time.sleep(0.5)
            cluster.leader()
        self.assertEqual(watch.two_at_once(), [])

    def test_tokens_grow(self):
        node = self.node()
        tokens = []
        for _ in range(3):
            tokens.append(node.status().token)
            node.terminate()
            node.start()
        for _ in range(2):
            tokens.append(node.status().token)
            node.kill()
            node.start()
        self.assertEqual(tokens, sorted(set(tokens)))

    def test_joins_and_leaves_are_followed(self):
        first = self.node()
        follow = hedgectl_start("members", "--follow", "-o", "json",
                                node=first)
        lines = []
        reader = threading.Thread(
            target=lambda: lines.extend(iter(follow.stdout.readline, b"")))
        reader.start()

        def last_list():
            found = {}
            for line in list(lines):
                row = json.loads(line)
                key = row["token"], row["list"]
                found.setdefault(key, set()).add(row["id"])
            return found[max(found)] if found else set()
        wait_until("the first list", lambda: last_list() == {first.id}, 10)
        second = self.node()
        wait_until("the join", lambda: last_list() == {first.id, second.id},
                   10)
        second.terminate()
        wait_until("the leave", lambda: last_list() == {first.id}, 10)
        second.start()
        wait_until("the join", lambda: last_list() == {first.id, second.id},
                   10)
        start = time.monotonic()
        second.kill()
        wait_until("the death", lambda: last_list() == {first.id}, 10, 0.01)
        report("member killed, seen", seconds=f"{time.monotonic() - start:.3f}")
        follow.send_signal(signal.SIGINT)
        follow.wait(10)
        reader.join()
        for pipe in (follow.stdin, follow.stdout, follow.stderr):
            pipe.close()

    def test_changes_when_the_leader_dies(self):
        """Each that lasts comes once, on every node: another leader, the old
        one's death, its coming back."""
        cluster, old, _ = self.start(http=True)
        rest = cluster.others()
        followers = [hedgectl_start("members", "--follow", "-o", "json",
                                    node=n) for n in rest]
        lines = [[], []]
        readers = [threading.Thread(target=lambda f=f, to=to: to.extend(
            iter(f.stdout.readline, b""))) for f, to in zip(followers, lines)]
        for reader in readers:
            reader.start()

        def told(lines):
            """(ids, leader) of each list; that nobody leads makes the same
            one come again."""
            lists, last = [], None
            for row in map(json.loads, list(lines)):
                key = row["token"], row["list"]
                if key != last or row["id"] in [r["id"] for r in lists[-1]]:
                    lists.append([])
                last = key
                lists[-1].append(row)
            return [(sorted(r["id"] for r in rows),
                     next((r["id"] for r in rows if r["leader"]), None))
                    for rows in lists]

        def once(values):
            return [v for i, v in enumerate(values)
                    if i == 0 or v != values[i - 1]]

        def wait_told(nodes, leader):
            wanted = sorted(n.id for n in nodes), leader.id
            wait_until(f"the list {wanted}", lambda: all(
                told(each)[-1:] == [wanted] for each in lines))
        wait_told(cluster.nodes, old)
        old.kill()
        new = cluster.leader()
        wait_told(rest, new)
        old.start()
        wait_told(cluster.nodes, new)
        for follower in followers:
            follower.send_signal(signal.SIGINT)
        for follower, reader, each in zip(followers, readers, lines):
            reader.join()
            finish(follower)
            lists = told(each)
            self.assertEqual([len(ids) for ids in once(
                [ids for ids, _ in lists])], [3, 2, 3], lists)
            self.assertEqual(once([leader for _, leader in lists if leader]),
                             [old.id, new.id], lists)
        for node in rest:
            self.assertEqual(metrics(node)["hedge_leader_changes_total"], 2)

    def test_stores_end_with_their_node(self):
        """A node that is stopped says what goes with it."""
        node = self.node()
        for name, size in (("x", MIB), ("y", MIB // 2), ("empty", 0)):
            self.assert_done(node.ctl("sos", "write", name,
                                      data=random_bytes(size)))
        node.terminate()
        self.assertIn("2 stores with 1.5 MiB end with this node",
                      node.log_text())
        self.assertRegex(node.log_text(), "info +node: no longer leader")

    def test_restart_on_the_same_address(self):
        cluster, leader, _ = self.start()
        for how in ("terminate", "kill"):
            node = cluster.others()[0]
            incarnation = getattr(node.status(), "self").incarnation
            getattr(node, how)()
            start = time.monotonic()
            node.start()
            cluster.wait_members(3, timeout=10)
            report(f"restart after {how}",
                   seconds=f"{time.monotonic() - start:.3f}")
            self.assertGreater(getattr(node.status(), "self").incarnation,
                               incarnation)
        # The leader, too.
        leader = cluster.leader()
        leader.kill()
        leader.start()
        cluster.wait_members(3)
        self.check_agreed(cluster)

    def test_all_restart(self):
        cluster, _, token = self.start()
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.start(wait=False)
        for node in cluster.nodes:
            node.wait_ready()
        cluster.wait_members(3)
        self.check_agreed(cluster)
        self.assertGreater(cluster.leader().status().token, token)

    def test_frozen_member_leaves_and_comes_back(self):
        cluster, leader, _ = self.start(sync_interval="200ms")
        member = cluster.others()[0]
        member.suspend()
        watching = Cluster([n for n in cluster.nodes if n is not member])
        wait_until("the silent member to be evicted", lambda: member.id not in
                   leader.ctl("members").out, 20)
        watching.wait_members(2)
        member.resume()
        cluster.wait_members(3)

    def test_another_lease(self):
        """Who joins with another lease than the leader's is told so."""
        leader = self.node(lease="9s")
        same, other = self.node(lease="9s"), self.node(lease="3s")

        def asked(node):
            return node.ctl("leader", json_output=True).object()["lease_ms"]
        for node in (leader, same, other):
            wait_until("the leader's lease", lambda n=node: asked(n) == 9000)
        warned = "lease of 9 s, this node one of 3 s"
        wait_until("a warning", lambda: warned in other.log_text())
        for node in (leader, same):
            self.assertNotIn("this node one of", node.log_text())

    def test_other_block_size_is_refused(self):
        first = self.node()
        other = self.node(start=False, block_size="2M", mem_limit="64M")
        other.start(wait=False)
        other.expected_to_run = False
        wait_until("the refusal", lambda: not other.is_running(), 15)
        self.assertEqual(other.process.returncode, 1)
        rows = first.ctl("members", json_output=True).objects()
        self.assertEqual([r["id"] for r in rows], [first.id])
        self.assertIn("1048576", other.log_text())
        self.assertRegex(other.log_text(), f"\nhedged: node {other.id} is not "
                         "in group \"test\": .* --block-size 2097152")

    def test_a_grpc_port_of_its_own(self):
        """Where a node answers is told, not guessed from where it listens."""
        nodes = []
        for _ in range(3):
            node = self.node(start=False, tcp=True, block_size="256K",
                             mem_limit="8M", disk_limit="4M",
                             disk_reserve="1M", sync_interval="200ms")
            node.grpc = f"127.0.0.1:{free_ports(1)}"
            node.options["grpc"] = node.grpc
            nodes.append(node)
        start_cluster(nodes)
        ids = {n.id for n in nodes}
        for node in nodes:
            for args in (("broadcast", "x"), ("stream-broadcast",)):
                r = self.assert_done(hedgectl(*args, node=node.grpc,
                                              data=b"x\n", json_output=True))
                self.assertEqual({o["id"] for o in r.objects()}, ids)
            self.assert_done(hedgectl("send", "x", node=node.grpc))
            self.assert_done(hedgectl("put", "k", "v", node=node.grpc))
        data = random_bytes(14 * MIB)  # More than the first has room for.
        info = self.assert_done(hedgectl(
            "sos", "write", "x", node=nodes[0].grpc, data=data,
            json_output=True)).object()
        self.assertGreater(len({t["node"] for t in info["tiers"]}), 1)
        for node in nodes:
            self.assertTrue(hedgectl("sos", "read", "x",
                                     node=node.grpc).stdout == data)

    def test_nothing_is_left_of_connections(self):
        """Members that come, go and die, and lists that go round, leave no
        descriptor behind."""
        cluster, leader, _ = self.start(sync_interval="100ms")
        member = cluster.others()[0]

        def descriptors(node):
            return len(os.listdir(f"/proc/{node.pid}/fd"))

        def churn(times):
            for i in range(times):
                getattr(member, ("terminate", "kill")[i % 2])()
                cluster.wait_members(2)
                member.start()
                cluster.wait_members(3)
                for node in cluster.nodes:
                    self.assert_done(node.ctl("broadcast", "x"))
        churn(2)
        rest = [n for n in cluster.nodes if n is not member]
        before = [descriptors(n) for n in rest]
        churn(6)
        wait_until("the dead one's descriptors to be closed", lambda: all(
            descriptors(n) < b + 4 for n, b in zip(rest, before)), 20)
        self.assertIs(cluster.leader(), leader)

    def test_groups_are_apart(self):
        one = self.node(group="one")
        two = self.node(group="two")
        for node in (one, two):
            rows = node.ctl("members", json_output=True).objects()
            self.assertEqual([r["id"] for r in rows], [node.id])
            self.assertTrue(rows[0]["leader"])


class Starting(DaemonTest):
    """What hedged says when it cannot, or should not, start."""

    def run_hedged(self, *args, **kwargs):
        state = os.path.join(self.dir, "state")
        return subprocess.run(
            [HEDGED, *[str(a) for a in args]], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30,
            check=False, text=True, env={**os.environ, "HOME": state,
                                         "XDG_STATE_HOME": state, **kwargs})

    def refused(self, *args, status=2, texts=()):
        done = self.run_hedged(*args)
        self.assertEqual(done.returncode, status, done)
        self.assertEqual(len(done.stderr.splitlines()), 1, done)
        self.assertTrue(done.stderr.startswith("hedged: "), done)
        self.assertLess(len(done.stderr), 600, done)
        for text in texts:
            self.assertIn(text, done.stderr)
        return done

    def minimal(self, *args):
        port = free_ports()
        return ("--listen", f"127.0.0.1:{port}", "--engine",
                f"lmdb:{self.dir}/engine", "--data", f"{self.dir}/data",
                *args)

    def test_data_directory_in_use(self):
        node = self.node()
        before = sorted(os.listdir(node.folder))
        self.refused("--listen", f"127.0.0.1:{free_ports()}", "--engine",
                     node.options["engine"], "--data", node.folder, status=1,
                     texts=[node.folder, str(node.pid), "running"])
        self.assertEqual(sorted(os.listdir(node.folder)), before)
        node.ctl("sos", "write", "x", data=b"one\n")
        self.assertEqual(node.ctl("sos", "read", "x").stdout, b"one\n")

    def test_it_listens_where_it_was_told(self):
        """On its two or three ports, and on no others."""
        node = self.node(http=True)
        self.node()  # The two find each other, too.
        inodes = set()
        for name in os.listdir(f"/proc/{node.pid}/fd"):
            try:
                link = os.readlink(f"/proc/{node.pid}/fd/{name}")
            except FileNotFoundError:
                continue
            if link.startswith("socket:["):
                inodes.add(link[8:-1])
        listening = set()
        for kind in ("tcp", "tcp6", "udp", "udp6", "raw"):
            try:
                with open(f"/proc/{node.pid}/net/{kind}",
                          encoding="ascii") as f:
                    rows = [row.split() for row in f.readlines()[1:]]
            except FileNotFoundError:
                continue
            # 0A: listens. What has no connections needs not listen.
            listening.update(
                (kind, r[1]) for r in rows if r[9] in inodes
                and (r[3] == "0A" or not kind.startswith("tcp")))
        mapped = "0000000000000000FFFF0000"  # An IPv4 address in IPv6.
        self.assertEqual(
            {(kind[:3], at.removeprefix(mapped)) for kind, at in listening},
            {("tcp", "0100007F:%04X" % (node.port + i)) for i in range(3)})

    def test_calls_while_it_starts(self):
        """Whoever calls before all is in place gets an answer or a refusal,
        and breaks nothing."""
        node = self.node(start=False, http=True)
        ended, heard = threading.Event(), []

        def lines():
            while not ended.is_set():
                try:
                    with socket.create_connection(("127.0.0.1", node.port),
                                                  10) as s:
                        s.sendall(b"MEM bnVsbA==\nLDR\nHEY a:1\nSND eA==\n"
                                  b"SEM x 1 a:1\nPUT bnVsbA==\n")
                        s.shutdown(socket.SHUT_WR)
                        while piece := s.recv(4096):
                            heard.append(piece)
                except OSError:
                    time.sleep(0.001)

        def calls():
            # Processes: threads with a gRPC client of Python's did not always
            # end here, although their calls had deadlines.
            while not ended.is_set():
                for command in ("send", "broadcast"):
                    heard.append(node.ctl("--timeout", "3s", command,
                                          "x").stdout)
        threads = [threading.Thread(target=fn)
                   for fn in (lines, calls, lines, calls)]
        for t in threads:
            t.start()
        try:
            for i in range(6):
                node.start()
                wait_until("answers", lambda: f"{node.id}: x".encode()
                           in heard)
                heard.clear()
                if i % 2:
                    node.kill()
                else:
                    self.assertEqual(node.terminate(), 0)
            node.start()
        finally:
            ended.set()
            for t in threads:
                t.join()
        self.assert_done(node.ctl("send", "x"))

    def test_ports_taken(self):
        for taken in (0, 1):
            with self.subTest(taken=("--listen", "--grpc")[taken]):
                port = free_ports()
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port + taken))
                    s.listen()
                    self.refused(
                        "--listen", f"127.0.0.1:{port}", "--engine",
                        f"lmdb:{self.dir}/engine", "--data",
                        f"{self.dir}/data", status=1,
                        texts=[f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"])

    def test_port_of_http_taken(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            taken = f"127.0.0.1:{s.getsockname()[1]}"
            self.refused(*self.minimal("--http", taken), status=1,
                         texts=["--http", taken])
            self.assertEqual(os.listdir(self.dir), [])

    def test_second_node_on_the_same_address(self):
        node = self.node()
        self.refused("--listen", node.id, "--engine", node.options["engine"],
                     "--data", f"{self.dir}/other", status=1, texts=[node.id])
        self.assertTrue(node.is_running())
        node.status()

    def test_bad_flags(self):
        for args in (("--nonsense",), ("--listen",), ("--listen", "x"),
                     ("--listen", "127.0.0.1"), ("--listen", "127.0.0.1:0"),
                     ("--listen", "127.0.0.1:70000"),
                     ("--listen", "127.0.0.1:65535"),
                     ("--listen", "localhost:8080"),
                     ("--listen", "0.0.0.0:8080"), ("word",),
                     ("--mem-limit", "much"), ("--mem-limit", "1K"),
                     ("--mem-limit", "-5"), ("--disk-limit", "1X"),
                     ("--lease", "10"), ("--lease", "1ms"), ("--lease", "2h"),
                     ("--sync-interval", "1ms"), ("--io", "magic"),
                     ("--block-size", "100K"), ("--block-size", "8M"),
                     ("--log-level", "loud"), ("--log-format", "xml"),
                     ("--message-limit", "1K"), ("--group", "a/b"),
                     ("--group", ""), ("--group", "x" * 300),
                     ("--insecure=yes",), ("--data", ""),
                     ("--disk-reserve", "some"), ("--lend-mem", "-1"),
                     ("--lend-disk", "1.5"), ("--block-lease", "7"),
                     ("--http", "x"), ("--http", "0.0.0.0:9999"),
                     ("--grpc", "127.0.0.1"), ("--grpc", "0.0.0.0:9999"),
                     ("--mem-limit", "15M"), ("--line-protocol", "maybe"),
                     ("--config", "/nonexistent"),
                     ("--engine", "nonsense:x"), ("--engine", "")):
            with self.subTest(args=args):
                self.refused(*self.minimal(*args))
                self.assertFalse(os.path.exists(f"{self.dir}/data"), args)
                done = self.run_hedged(*self.minimal(*args, "--check-config"))
                self.assertEqual(done.returncode, 2, done)

    def test_what_is_wrong_is_named(self):
        self.refused(*self.minimal("--listen", "localhost:1"),
                     texts=['"localhost" is not an IPv4 address'])
        self.assertNotIn("etcd", self.refused(*self.minimal(
            "--engine", "foo"), texts=["lmdb:DIR"]).stderr)

    def test_data_cannot_be_made(self):
        self.refused("--listen", f"127.0.0.1:{free_ports()}", "--engine",
                     f"lmdb:{self.dir}/engine", "--data", "/proc/hedge/x",
                     status=1, texts=["/proc/hedge"])

    def test_check_config(self):
        done = self.run_hedged(*self.minimal("--check-config"))
        self.assertEqual(done.returncode, 0, done)
        self.assertEqual(os.listdir(self.dir), [])

    def test_config_file(self):
        path = os.path.join(self.dir, "hedge.conf")
        node = self.node(start=False)
        with open(path, "w", encoding="utf-8") as f:
            f.write("# a comment\n\n")
            for name, value in node.options.items():
                f.write(f"{name.replace('_', '-')} {value}\n")
            f.write("--log-level=debug\nmem-limit = 32M\n")
        node.argv = lambda: [HEDGED, "--config", path]
        node.start()
        self.assertEqual(getattr(node.status(), "self").mem_limit, 32 << 20)
        with open(path, "a", encoding="utf-8") as f:
            f.write("nonsense 5\n")
        line = len(node.options) + 5
        self.refused("--config", path, texts=[path, f"line {line}",
                                              "nonsense"])
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"config {path}\n")
        self.refused("--config", path, texts=["files within files"])

    def test_version_and_help(self):
        self.assertRegex(self.run_hedged("--version").stdout,
                         r"^hedged \d+\.\d+\.\d+\n$")
        for word in ("--help", "-h"):
            done = self.run_hedged(word)
            self.assertEqual(done.returncode, 0)
            for flag in ("--listen", "--lease", "--check-config"):
                self.assertIn(flag, done.stdout)

    def test_defaults(self):
        """Without directories: they are made below the user's state, for the
        user alone."""
        node = self.node(start=False, engine=None)
        node.options["engine"] = node.options["data"] = None
        node.options["mem_limit"] = node.options["disk_limit"] = None
        node.start()
        state = os.path.join(self.dir, "state", "hedge")
        status = node.status()
        self.assertTrue(status.data_dir.startswith(state), status.data_dir)
        self.assertIn(state, status.engine)
        for folder, _, _ in os.walk(state):
            self.assertEqual(os.stat(folder).st_mode & 0o777, 0o700, folder)
        self.assertEqual(getattr(status, "self").disk_limit, 10 << 30)

    def test_signals(self):
        for sig, lives in ((signal.SIGHUP, True), (signal.SIGTERM, False),
                           (signal.SIGINT, False)):
            node = self.node()
            node.process.send_signal(sig)
            if lives:
                time.sleep(0.3)
                node.status()
                self.assertEqual(node.terminate(), 0)
            else:
                start = time.monotonic()
                self.assertEqual(node._reap(15), 0)
                report(f"signal {sig.name}, ended after",
                       seconds=f"{time.monotonic() - start:.3f}")

    def test_status_text(self):
        node = self.node()
        text = self.assert_done(node.ctl("status")).out
        for word in (node.id, "lmdb:", "io_uring", "O_DIRECT", "huge pages"):
            self.assertIn(word, text)

    def test_no_node(self):
        result = hedgectl("status", node=f"127.0.0.1:{free_ports()}")
        self.assert_status(result, 1)
        self.assertEqual(len(result.err.splitlines()), 1, str(result))


if __name__ == "__main__":
    main()
