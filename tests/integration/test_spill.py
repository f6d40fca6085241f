"""A store that does not fit: memory, disk, another node's memory, its disk."""
import re
import threading
import time

from hedge_harness import (KIB, MIB, SharedTest, finish, hedgectl_start, main,
                           random_bytes, report, stubs, wait_until)


class Spill(SharedTest):
    """Each node: 24 blocks of 256 KiB in memory, and 8 MiB of disk."""

    size = 3
    options = {"block_size": "256K", "mem_limit": "8M", "disk_limit": "8M",
               "disk_reserve": "1M", "sync_interval": "200ms"}

    def tearDown(self):
        for info in self.first.ctl("sos", "ls", json_output=True).objects():
            self.first.ctl("sos", "rm", info["name"])
        self.wait_unused()
        self.wait_free()

    def wait_free(self):
        """Until every node knows that all have room again."""
        def known():
            for node in self.nodes:
                for row in node.ctl("members", json_output=True).objects():
                    if row["mem_used"] or row["disk_used"]:
                        return False
            return True
        wait_until("the members to know of the room", known, 15)

    def write(self, name, data, *args, node=None, status=0, **kwargs):
        result = (node or self.first).ctl("sos", "write", name, *args,
                                          data=data, json_output=True,
                                          **kwargs)
        self.assert_status(result, status)
        self.last = result
        return result.object()

    def check_read(self, name, data, nodes=None, *args):
        for node in nodes or self.nodes:
            got = self.assert_done(node.ctl("sos", "read", name, *args)).stdout
            self.assertEqual(len(got), len(data), node.id)
            self.assertTrue(got == data, f"other bytes from {node.id}")

    @staticmethod
    def tiers(info):
        return {(t["node"], t["tier"]): t["bytes"] for t in info["tiers"]}

    def test_copies_on_all_nodes(self):
        """More than fits on the owner and one other node: second copies go
        to both others, so that two have room to the end."""
        data = random_bytes(18 * MIB)
        info = self.write("x", data, "--replicas", 2)
        self.assertEqual(info["missing_copies"], 0)
        on = {node.id: 0 for node in self.nodes}
        for tier in info["tiers"]:
            on[tier["node"]] += tier["bytes"]
        self.assertEqual(sum(on.values()), 2 * len(data))
        self.assertGreater(min(on.values()), 9 * MIB, on)
        self.check_read("x", data)

    def test_four_tiers(self):
        data = random_bytes(22 * MIB)
        info = self.write("x", data)
        tiers = self.tiers(info)
        self.assertEqual(sum(tiers.values()), len(data))
        me = self.first.id
        self.assertGreater(tiers[me, "memory"], 4 * MIB)
        self.assertGreater(tiers[me, "disk"], 6 * MIB)
        other = {node for node, _ in tiers} - {me}
        self.assertEqual(len(other), 1, "filled one after the other")
        other = other.pop()
        self.assertGreater(tiers[other, "memory"], 4 * MIB)
        self.assertIn((other, "disk"), tiers)
        self.check_read("x", data)
        # Every node tells the same of it.
        stats = [n.ctl("sos", "stat", "x", json_output=True).object()
                 for n in self.nodes]
        for stat in stats:
            self.assertEqual(stat["digest"], info["digest"])
            self.assertEqual(stat["owner"], me)
            self.assertEqual(self.tiers(stat), tiers)
        lists = [n.ctl("sos", "ls", json_output=True).objects()
                 for n in self.nodes]
        for found in lists:
            self.assertEqual([i["name"] for i in found], ["x"])

    def test_lent_figures(self):
        self.write("x", random_bytes(22 * MIB))
        lent = used = 0
        for node in self.nodes:
            me = getattr(node.status(), "self")
            if node is not self.first:
                lent += me.mem_lent + me.disk_lent
                used += me.mem_used + me.disk_used
                self.assertEqual((me.mem_lent, me.disk_lent),
                                 (me.mem_used, me.disk_used))
            else:
                self.assertEqual((me.mem_lent, me.disk_lent), (0, 0))
        self.assertGreater(lent, 7 * MIB)

    def test_one_full_node_read_from_another(self):
        fill = random_bytes(14 * MIB, 2)
        data = random_bytes(13 * MIB, 3)
        self.write("fill", fill)
        self.write("x", data, node=self.nodes[1])
        self.check_read("x", data)
        self.check_read("fill", fill, [self.nodes[2], self.nodes[1]])

    def test_two_full_nodes_read_each_other(self):
        one, two = random_bytes(20 * MIB, 4), random_bytes(19 * MIB, 5)
        self.write("one", one)
        self.write("two", two, node=self.nodes[1])
        readers = [hedgectl_start("sos", "read", name, node=node)
                   for name in ("one", "two") for node in self.nodes]
        results = [None] * len(readers)

        def run(i):
            results[i] = finish(readers[i])
        threads = [threading.Thread(target=run, args=(i,))
                   for i in range(len(readers))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for i, result in enumerate(results):
            self.assert_done(result)
            self.assertTrue(result.stdout == (one if i < 3 else two))

    def test_discard(self):
        data = random_bytes(22 * MIB)
        for node in (self.first, self.nodes[2]):
            with self.subTest(node=node.id):
                self.write("x", data)
                self.check_read("x", data, [node], "--discard")
                self.wait_unused(timeout=10)
                info = self.first.ctl("sos", "stat", "x",
                                      json_output=True).object()
                self.assertEqual(info["tiers"], [])
                self.assertEqual(info["discarded_bytes"], len(data))
                self.assertGreater(info["discarded_blocks"], 80)
                self.assertEqual(info["missing_copies"], 0)
                self.assertIn("discarded ", self.first.ctl(
                    "sos", "stat", "x").out)
                again = self.first.ctl("sos", "read", "x")
                self.assertNotEqual(again.status, 0)  # Never a short read.
                self.assertIn("discarded", again.err)
                self.assertEqual(again.stdout, b"")
                self.assert_done(self.first.ctl("sos", "rm", "x"))

    def test_discard_while_it_is_written(self):
        """More than the whole cluster holds, through it; the reader is slower
        than the writer, and what it makes room for is waited for."""
        data = random_bytes(8 * MIB) * 10
        writer = hedgectl_start("sos", "write", "x", node=self.first)
        writer.stdin.write(data[:MIB])
        writer.stdin.flush()
        wait_until("the store", lambda: self.first.ctl(
            "sos", "stat", "x").status == 0, 10)
        reader = hedgectl_start("sos", "read", "x", "--follow", "--discard",
                                node=self.nodes[1])
        wait_until("the reader", lambda: self.first.store().Stat(
            stubs()[0].StoreRequest(name="x"), timeout=10).readers == 1, 10)
        feeder = threading.Thread(target=self.feed, args=(writer, data[MIB:]))
        feeder.start()
        got = bytearray()
        while chunk := reader.stdout.read(4 * MIB):
            got += chunk
            time.sleep(0.1)
        reader.stdout.close()
        self.assert_done(finish(reader))
        feeder.join()
        writer.stdin = None
        self.assert_done(finish(writer))
        self.assertTrue(got == data, f"{len(got)} of {len(data)} bytes")
        self.wait_unused(timeout=10)

    @staticmethod
    def feed(process, data, chunk=256 * KIB, pause=0):
        try:
            for at in range(0, len(data), chunk):
                time.sleep(pause)
                process.stdin.write(data[at:at + chunk])
                process.stdin.flush()
            process.stdin.close()
        except BrokenPipeError:
            pass

    # --- removing ---

    def test_rm_from_any_node(self):
        data = random_bytes(22 * MIB)
        for node in self.nodes:
            self.write("x", data)
            self.assert_done(node.ctl("sos", "rm", "x"))
            # The name is free at once, everywhere.
            for other in self.nodes:
                self.assert_status(other.ctl("sos", "stat", "x"), 3)
            self.wait_unused(timeout=10)
            self.wait_free()

    def test_name_reused_at_once(self):
        for i, node in enumerate(self.nodes * 2):
            self.write("x", b"%d\n" % i, node=node)
            self.check_read("x", b"%d\n" % i)
            self.assert_done(self.nodes[(i + 1) % 3].ctl("sos", "rm", "x"))

    def test_rm_while_it_is_read(self):
        self.write("x", random_bytes(30 * MIB))
        for node in (self.first, self.nodes[1]):
            with self.subTest(node=node.id):
                reader = hedgectl_start("sos", "read", "x", node=node)
                reader.stdout.read(100 * KIB)
                self.assert_done(self.first.ctl("sos", "rm", "x"))
                self.write("x", b"another\n")
                result = finish(reader)
                self.assert_status(result, 3)
                self.assertIn("removed", result.err)
                self.check_read("x", b"another\n")
                self.assert_done(self.first.ctl("sos", "rm", "x"))
                self.wait_unused()
                self.wait_free()
                self.write("x", random_bytes(30 * MIB))

    def test_rm_while_it_is_written(self):
        for node in (self.first, self.nodes[1]):
            with self.subTest(through=node.id):
                self.write("x", b"", node=self.first)
                writer = hedgectl_start("sos", "write", "x", "--append",
                                        node=node)
                feeder = threading.Thread(
                    target=self.feed, args=(writer, random_bytes(20 * MIB),
                                            256 * KIB, 0.05))
                feeder.start()
                wait_until("data", lambda: self.used() > 2 * MIB, 10)
                self.assert_done(self.nodes[2].ctl("sos", "rm", "x"))
                feeder.join(30)
                writer.stdin = None
                result = finish(writer)
                self.assertIn(result.status, (1, 3), str(result))
                self.assertIn("removed", result.err)
                self.assertEqual(len(result.err.splitlines()), 1, result)
                self.assert_status(self.first.ctl("sos", "stat", "x"), 3)
                self.wait_unused()

    # --- writing by way of another node ---

    def test_append_from_other_nodes(self):
        self.write("x", b"one\n")
        info = self.write("x", b"two\n", "--append", node=self.nodes[1])
        self.assertEqual(info["owner"], self.first.id)
        self.write("x", b"three\n", "--append", node=self.nodes[2])
        self.check_read("x", b"one\ntwo\nthree\n")
        stat = self.first.ctl("sos", "stat", "x", json_output=True).object()
        self.assertEqual((stat["writers"], stat["writers_ever"]), (0, 3))
        self.assertIn("by 3 writers", self.first.ctl("sos", "stat", "x").out)
        result = self.nodes[1].ctl("sos", "write", "x", data=b"four\n")
        self.assert_status(result, 1)
        self.assertIn("exists already", result.err)
        result = self.nodes[1].ctl("sos", "write", "x", "--append", "--ttl",
                                   "3m", data=b"four\n")
        self.assert_status(result, 2)
        self.assertIn("TTL", result.err)

    def test_same_name_from_all_nodes_at_once(self):
        """One makes it, the others are told that it is there."""
        for _ in range(5):
            writers = [hedgectl_start("sos", "write", "x", node=n)
                       for n in self.nodes]
            results = [finish(w, b"from %d\n" % i)
                       for i, w in enumerate(writers)]
            self.assertEqual(sorted(r.status for r in results), [0, 1, 1],
                             [str(r) for r in results])
            winner = [r.status for r in results].index(0)
            self.check_read("x", b"from %d\n" % winner)
            self.assert_done(self.first.ctl("sos", "rm", "x"))

    # --- the end of a store's time ---

    def test_ttl(self):
        self.write("x", random_bytes(22 * MIB), "--ttl", "1500ms")
        self.assert_done(self.nodes[1].ctl("sos", "stat", "x"))
        start = time.monotonic()
        wait_until("the store to expire", lambda: self.first.ctl(
            "sos", "stat", "x").status == 3, 10)
        report("ttl of 1.5 s", seconds=f"{time.monotonic() - start:.2f}")
        time.sleep(0.3)  # The leader is told.
        for node in self.nodes:
            for verb in ("read", "stat", "rm"):
                result = node.ctl("sos", verb, "x")
                self.assert_status(result, 3)
                self.assertRegex(result.err, r'"x" expired .* ago\n')
        self.wait_unused(timeout=10)
        # The name is free.
        self.write("x", b"again\n", node=self.nodes[1])
        self.check_read("x", b"again\n")

    def test_ttl_runs_after_the_last_use(self):
        self.write("x", random_bytes(4 * MIB), "--ttl", "1s")
        for _ in range(4):
            time.sleep(0.5)
            self.check_read("x", random_bytes(4 * MIB), [self.nodes[1]])
        stat = self.first.ctl("sos", "stat", "x", json_output=True).object()
        self.assertIsNotNone(stat["expires_at"])
        reader = hedgectl_start("sos", "read", "x", node=self.first, bufsize=0)
        reader.stdout.read(1)
        time.sleep(2)  # An open reader keeps it.
        self.assert_done(self.first.ctl("sos", "stat", "x"))
        self.assertEqual(len(finish(reader).stdout), 4 * MIB - 1)
        wait_until("the store to expire", lambda: self.first.ctl(
            "sos", "stat", "x").status == 3, 10)

    # --- no room ---

    def test_full(self):
        lines = b"".join(b"%08d %s\n" % (i, random_bytes(500, i).hex().encode())
                         for i in range(60_000))  # 60 MB
        info = self.write("x", lines, "--compress", "none", status=1)
        self.assertGreater(info["bytes"], 36 * MIB)
        self.assertLess(info["bytes"], 44 * MIB)
        self.assertEqual(info["state"], "closed")
        text = self.last.err.splitlines()[-1]
        self.assertIn("no room", text.lower())
        for node in self.nodes:
            self.assertIn(node.id, text)
        self.assertEqual(len(re.findall(
            r"memory \S+ MiB of 6.0 MiB, disk \S+ MiB of 8.0 MiB", text)), 3,
            text)
        # What was taken: whole records, readable from everywhere.
        kept = lines[:info["bytes"]]
        self.assertTrue(kept.endswith(b"\n"))
        self.assertEqual(kept.count(b"\n"), info["records"])
        self.check_read("x", kept)
        # The next one does not fit either, and says so at once.
        more = self.write("y", lines, "--compress", "none", status=1)
        self.check_read("y", lines[:more["bytes"]])
        self.assertLess(more["bytes"], 4 * MIB)
        # Room that becomes free is used again.
        self.assert_done(self.first.ctl("sos", "rm", "x"))
        self.assert_done(self.first.ctl("sos", "rm", "y"))
        self.wait_unused()
        self.wait_free()
        again = self.write("z", lines, "--compress", "none", status=1)
        self.assertGreater(again["bytes"], 36 * MIB)

    def test_limits_of_a_store(self):
        # 2 MiB of memory and 3 MiB of disk on each node.
        data = random_bytes(30 * MIB)
        info = self.write("x", data, "--mem-limit", "2M", "--disk-limit",
                          "3M", "--record-size", "64K", status=1)
        tiers = self.tiers(info)
        # What was on its way when there was no more room stays in memory.
        tiers.pop((self.first.id, "memory"))
        self.check_limits(tiers)
        self.assertEqual(len(tiers), 5, tiers)
        self.assertGreater(info["bytes"], 12 * MIB)
        self.check_read("x", data[:info["bytes"]])
        text = self.last.err.splitlines()[-1]
        self.assertIn("it may use memory 2.0 MiB, disk 3.0 MiB", text)
        info = self.write("y", data[:12 * MIB], "--mem-limit", "2M",
                          "--disk-limit", "3M")
        self.assertGreaterEqual(len(info["tiers"]), 5)
        self.check_limits(self.tiers(info))

    def check_limits(self, tiers):
        for (node, tier), used in tiers.items():
            self.assertLessEqual(used, (2 if tier == "memory" else 3) * MIB,
                                 (node, tier))

    def test_two_writers_until_full(self):
        writers = [hedgectl_start("sos", "write", f"w{i}", "--record-size",
                                  "10000", "-o", "json", node=self.nodes[i])
                   for i in range(3)]
        data = [random_bytes(30 * MIB, i) for i in range(3)]
        threads = [threading.Thread(target=self.feed, args=(w, d))
                   for w, d in zip(writers, data)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        total = 0
        for i, w in enumerate(writers):
            w.stdin = None
            result = finish(w)
            self.assert_status(result, 1)
            info = result.object()
            total += info["bytes"]
            self.check_read(f"w{i}", data[i][:info["bytes"]],
                            [self.nodes[(i + 1) % 3]])
        self.assertGreater(total, 36 * MIB)


if __name__ == "__main__":
    main()
